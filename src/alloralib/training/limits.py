"""What the data of a run may be, given what its model can take: a tokenizer and a length that fit, and images that do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from ..data.forms import LANGUAGE, Kind
from ..data.images import image_size
from ..errors import ConfigError, ModelError, TrainingError
from ..evaluation.batching import evaluation_mode
from ..evaluation.limits import Limits, limits_of

DEFAULT_LENGTH = 512
"""Tokens per row, if the model can take them and nothing else is asked for."""


def read_limits(path: str, kind: Kind, tokenizer: Any) -> Limits | None:
    """The limits of a model that is not loaded yet; None for images, and if the model cannot be made from its configuration.

    Args:
        path: directory or hub id.
        tokenizer: of the model; a classifier is loaded with its padding id, from which RoBERTa counts positions.
    """
    if kind == "image-classification":
        return None
    auto: Any = AutoModelForCausalLM if kind in LANGUAGE else AutoModelForSequenceClassification
    try:
        with torch.device("meta"):  # its modules without their weights
            config: Any = AutoConfig.from_pretrained(path)
            own, pad = getattr(config, "pad_token_id", None), tokenizer.pad_token_id
            if kind == "classification" and own is not None and own < (pad or 0) < getattr(config, "vocab_size", 0):
                config.pad_token_id = pad
            return limits_of(auto.from_config(config))
    except (OSError, ValueError, KeyError):
        return None  # loading the model says why


def fit_length(asked: int | None, limits: Limits | None, model: str) -> tuple[int, list[str]]:
    """The tokens per row, and what there is to say about them.

    Args:
        asked: `max_length` of the run; None for as many as usual and possible.
        model: its name, for the error.

    Raises:
        ConfigError: more than the model can take.
    """
    positions = None if limits is None else limits.positions
    if asked is not None:
        if positions is not None and asked > positions:
            raise ConfigError(
                f"max_length={asked} is more than the {positions} tokens that {model} can take",
                where="--max-length",
                remedy=f"give at most {positions}, or leave it out",
            )
        return asked, []
    if positions is None or positions >= DEFAULT_LENGTH:
        return DEFAULT_LENGTH, []
    return positions, [f"max_length is {positions}, not {DEFAULT_LENGTH}: the model can take no more tokens"]


def fit_tokenizer(tokenizer: Any, limits: Limits | None) -> list[str]:
    """Change what a tokenizer adds to a text and its model cannot take; returns what was changed.

    - A padding token without an embedding is replaced by the one of the model's configuration, else by the end of text.
      Padding is masked, so its embedding makes no difference.
    - Token type ids are left out if the model takes none, or has no embedding for the second text of a pair.

    Raises:
        ModelError: there is no padding token that the model has an embedding for.
    """
    if limits is None:
        return []
    said: list[str] = []
    pad = tokenizer.pad_token_id
    if pad is not None and pad >= limits.tokens:
        token = _padding(tokenizer, limits)
        said.append(f"no embedding for the padding token {tokenizer.pad_token!r} (id {pad}): {token!r} pads instead")
        tokenizer.pad_token = token
    names = list(tokenizer.model_input_names)
    if "token_type_ids" in names and limits.token_types is not None and limits.token_types < 2:
        tokenizer.model_input_names = [name for name in names if name != "token_type_ids"]
        tokenizer.init_kwargs["model_input_names"] = tokenizer.model_input_names
    return said


def check_pixels(model: Any, examples: Any, where: Callable[[int], str]) -> None:
    """Check that the image processor makes images of one size, and that the model takes them.

    Args:
        model: an image classifier.
        examples: from `data.examples.build_examples`.
        where: called with the index of a row, says where it comes from.

    Raises:
        TrainingError: it does not; the sizes are named.
    """
    remedy = "correct size, do_resize and do_center_crop in the model's preprocessor_config.json"
    sizes = [image_size(source) for source in examples.with_format(None)["pixel_values"]]
    orders: list[Callable[[int], float]] = [
        lambda i: sizes[i][0], lambda i: sizes[i][1], lambda i: sizes[i][0] / sizes[i][1],
    ]  # fmt: skip
    extremes = {choose(range(len(sizes)), key=order) for order in orders for choose in (min, max)}
    made = {row: tuple(examples[row]["pixel_values"].shape) for row in sorted(extremes)}
    first, *others = made
    for row in others:
        if made[row] != made[first]:
            what = f"the image processor makes images of shape {made[first]} and of shape {made[row]} ({where(row)})"
            raise TrainingError(what, where=where(first), remedy=remedy)
    try:
        with evaluation_mode(model):
            model(pixel_values=examples[first]["pixel_values"][None].to(model.device))
    except (ValueError, RuntimeError, IndexError) as error:
        config = model.config
        takes = f"(channels {getattr(config, 'num_channels', '?')}, image size {getattr(config, 'image_size', '?')})"
        what = f"the model {takes} does not take the images of shape {made[first]} that the image processor makes: {error}"
        raise TrainingError(what, where="preflight", remedy=remedy) from error


def _padding(tokenizer: Any, limits: Limits) -> str:
    for token_id in (limits.pad_token_id, tokenizer.eos_token_id, tokenizer.sep_token_id):
        if token_id is not None and 0 <= token_id < limits.tokens:
            token = tokenizer.convert_ids_to_tokens(token_id)
            if token is not None:
                return token
    raise ModelError(
        f"the padding token {tokenizer.pad_token!r} has id {tokenizer.pad_token_id}, and the model has embeddings for ids "
        f"below {limits.tokens} only",
        where=tokenizer.name_or_path or None,
        remedy="set another padding token (tokenizer.pad_token) or resize the model "
        "(model.resize_token_embeddings(len(tokenizer))), and save both",
    )
