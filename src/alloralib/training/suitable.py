"""Whether a model is of the kind that a task trains, and which of its parts a task uses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
)

from ..data.forms import LANGUAGE, Kind
from ..errors import ConfigError, DataError, ModelError
from ..evaluation.batching import evaluation_mode

_EFFECT = 1e-2
"""A change of the logits, relative to their size, that rounding does not explain in any dtype."""


def check_kind(config: Any, task: Kind, where: str) -> None:
    """Check that transformers has a class of this architecture for the task.

    Args:
        config: of the model.
        where: its directory or hub id.

    Raises:
        ModelError: it has none, or the architecture is an encoder-decoder and the task continues a text.
    """
    kind, name = getattr(config, "model_type", type(config).__name__), "language models"
    mapping: Any = MODEL_FOR_CAUSAL_LM_MAPPING
    if task == "classification":
        mapping, name = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, "text classifiers"
    elif task == "image-classification":
        mapping, name = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, "image classifiers"
    if task in LANGUAGE and getattr(config, "is_encoder_decoder", False):
        # some have a decoder of their own in transformers, but it was never trained without its encoder
        what = f"{kind} is an encoder-decoder, and {task} trains a model that continues its input"
        raise ModelError(what, where=where, remedy="give a decoder, such as a Llama or Qwen model")
    if type(config) not in mapping:
        raise ModelError(f"transformers has no {name} of the architecture {kind}", where=where, remedy="give another model")


def check_causal(model: Any, where: str) -> None:
    """Check that no logit of a language model depends on a later token, by changing the last of a few tokens.

    A model that sees the answer learns nothing: its loss falls to zero, and what it generates is noise. That is what encoders
    do that transformers loads as language models (BERT, RoBERTa, ...).

    Raises:
        ModelError: one does.
    """
    size = model.config.get_text_config().vocab_size
    ids = torch.arange(1, 9, device=model.device).repeat(2, 1) % size
    ids[1, -1] = (ids[1, -1] + 1) % size
    with evaluation_mode(model):
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, :-1].float()
    if bool((logits[0] - logits[1]).norm() > _EFFECT * logits[0].norm()):
        what = "every position sees the tokens after it, so a trained token could be read off the input"
        raise ModelError(what, where=where, remedy="give a decoder, such as a Llama or Qwen model; this one is an encoder")


def check_ends(config: Any, rows: Any, where: Callable[[int], str]) -> None:
    """Check that an encoder-decoder finds the end of each row of a batch: T5 and BART classify by the last end-of-text token.

    Args:
        config: of a text classifier.
        rows: its examples; they have `input_ids`.
        where: the place of a row in the data.

    Raises:
        DataError: a row has more such tokens than the one that the tokenizer adds, because its text has one.
    """
    if not getattr(config, "is_encoder_decoder", False):
        return
    for row, ids in enumerate(rows["input_ids"]):
        if (found := ids.count(config.eos_token_id)) != 1:
            what = f"has {found} end-of-text tokens, and {config.model_type} classifies rows with one, which the tokenizer adds"
            raise DataError(what, where=where(row), remedy="remove the token from the text")


def check_checkpointing(model: Any) -> None:
    """Check that a model can recompute its activations (`gradient_checkpointing`).

    Raises:
        ConfigError: it cannot.
    """
    if not model.supports_gradient_checkpointing:
        remedy = "leave it out; a smaller --batch-size with --gradient-accumulation needs less memory, too"
        raise ConfigError(f"{type(model).__name__} does not support it", where="--gradient-checkpointing", remedy=remedy)


def beside_the_text(model: nn.Module) -> list[str]:
    """The modules of a multimodal model that text does not pass through, such as the tower that reads images."""
    config: Any = model.config
    if config.get_text_config() is config:
        return []
    decoder: Any = model.get_decoder()  # pyright: ignore[reportCallIssue]
    name = next(name for name, module in model.named_modules() if module is decoder)
    parent = name.rpartition(".")[0]
    others = (child for child, module in model.get_submodule(parent).named_children() if module is not decoder)
    return [f"{parent}.{child}" for child in others] if parent else []
