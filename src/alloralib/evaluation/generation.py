"""Generate answers: tokens of the prompts, then greedy or sampled continuations, in batches of prompts of similar length."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.utils import GENERATION_CONFIG_NAME

from ..data.conversations import Conversation, read_prompt
from ..data.forms import Kind
from ..data.language import token_ids
from ..data.stops import chat_template, stops
from ..data.templates import ChatTemplate
from ..errors import DataError, ModelError
from .batching import Progress, evaluation_mode, longest_first, no_progress
from .limits import Limits, check_room, check_token_ids, limits_of

Prompt = str | Sequence[dict[str, Any]] | Mapping[str, Any] | Conversation
"""A text to continue, or a conversation for the assistant to answer: messages, or a row with messages, tools and system."""


def encode_prompt(tokenizer: Any, prompt: Prompt, *, chat: ChatTemplate | None = None, where: str = "the prompt") -> list[int]:
    """The tokens of a prompt: those that a row of training has up to its answer.

    A text is tokenized with the special tokens that the tokenizer puts in front, without those at the end. A conversation is
    rendered by the chat template, up to the start of the assistant's answer.

    Args:
        chat: the template, from `data.stops.chat_template`; by default the tokenizer's.
        where: the prompt's place, for the error.

    Raises:
        ModelError: a conversation, and the tokenizer has no chat template.
        DataError: a prompt without tokens, a malformed conversation, or one that the chat template refuses.
    """
    if isinstance(prompt, str):
        (ids,) = token_ids(tokenizer, [prompt])
        while (
            ids and ids[-1] in (tokenizer.eos_token_id, tokenizer.sep_token_id) and not _ends_with(tokenizer, prompt, ids[-1])
        ):
            ids = ids[:-1]  # added by the tokenizer; the answer goes in its place
    else:
        if not tokenizer.chat_template:
            raise ModelError(
                "the tokenizer has no chat template, and a conversation needs one",
                remedy="give plain text, or a model with a chat template (an instruct model)",
            )
        ids = (chat or chat_template(tokenizer)).encode(read_prompt(prompt, where), where, prompt=True).ids
    if not ids:
        raise DataError(f"the tokenizer makes no token of the prompt {prompt!r}", remedy="give a prompt with text")
    return ids


def _ends_with(tokenizer: Any, text: str, token: int) -> bool:
    return text.rstrip().endswith(tokenizer.convert_ids_to_tokens(token))


def end_tokens(model: Any, tokenizer: Any, kind: Kind = "chat") -> list[int]:
    """The tokens that end an answer: those of the model's generation config, and those that training for `kind` taught."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends = {*stops(tokenizer, kind).tokens, *(configured if isinstance(configured, list) else [configured])}
    return sorted(token for token in ends if token is not None)


def set_end_tokens(model: Any, tokenizer: Any, kind: Kind, directory: Path | None = None) -> None:
    """Give a language model's generation config the tokens with which it ends its answers after training for `kind`.

    Args:
        directory: of a saved adapter, whose own generation config may know more of them.
    """
    ends = set(end_tokens(model, tokenizer, kind))
    if directory is not None and (directory / GENERATION_CONFIG_NAME).is_file():
        saved = GenerationConfig.from_pretrained(directory).eos_token_id
        ends |= set(saved if isinstance(saved, list) else [] if saved is None else [saved])
    model.generation_config.eos_token_id = sorted(ends) if len(ends) > 1 else next(iter(ends), None)


def generate_answers(
    model: Any, tokenizer: Any, prompts: Sequence[Prompt], *, max_new_tokens: int = 64, batch_size: int = 8,
    temperature: float = 0.0, seed: int = 0, progress: Progress = no_progress,
) -> list[str]:  # fmt: skip
    """Generate the model's answer to each prompt.

    Args:
        prompts: texts or conversations, see `encode_prompt`.
        max_new_tokens: longest answer, in tokens; a long prompt's answer is shorter if the model has no positions for both.
        batch_size: prompts per batch.
        temperature: 0 takes the most probable token at every step. Above 0, tokens are sampled.
        seed: of the sampling.
        progress: called with the number of prompts that were just answered.

    Returns:
        the answers, in the order of the prompts, without special tokens. White space around them is kept.

    Raises:
        ModelError, DataError: as `encode_prompt`; or a prompt that leaves no room for an answer, or with a token that the
            model has no embedding for.
    """
    chat = chat_template(tokenizer) if tokenizer.chat_template and not all(isinstance(p, str) for p in prompts) else None
    encoded = [encode_prompt(tokenizer, prompt, chat=chat, where=_where(row)) for row, prompt in enumerate(prompts)]
    limits = limits_of(model)
    check_token_ids(encoded, limits, tokenizer, _where)
    check_room(encoded, limits, _where)
    ends, end = end_tokens(model, tokenizer), "" if chat is None else stops(tokenizer, "chat").text.strip()
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (ends or [0])[0]
    sampling: dict[str, Any] = {"temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature > 0 else {}
    settings = GenerationConfig(do_sample=temperature > 0, eos_token_id=ends or None, pad_token_id=pad, **sampling)
    answers = [""] * len(encoded)
    with evaluation_mode(model), torch.random.fork_rng(devices=_devices(model)):
        torch.manual_seed(seed)
        for rows, settings.max_new_tokens in _batches([len(ids) for ids in encoded], batch_size, max_new_tokens, limits):
            ids, mask = left_padded([encoded[i] for i in rows], pad, model.device)
            generated = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)[:, ids.shape[1] :]
            for row, text in zip(rows, tokenizer.batch_decode(generated, skip_special_tokens=True), strict=True):
                answers[row] = text.partition(end)[0] if end else text
            progress(len(rows))
    return answers


def _where(row: int) -> str:
    return f"prompt {row + 1}"


def _batches(lengths: list[int], batch_size: int, new: int, limits: Limits) -> Iterator[tuple[list[int], int]]:
    """The prompts of every batch, and the most tokens of their answers; a prompt with room for less has its own batch."""
    longest = len(lengths) * [new] if limits.positions is None else [min(new, limits.positions - n) for n in lengths]
    short = [row for row, most in enumerate(longest) if most < new]
    if short:
        what = f"{len(short)} of {len(lengths)} answers have fewer than {new} tokens at most"
        print(f"allora: warning: {what}: the model can take {limits.positions} tokens, prompt and answer", file=sys.stderr)
    others = [row for row, most in enumerate(longest) if most == new]
    for batch in longest_first([lengths[row] for row in others], batch_size):
        yield [others[i] for i in batch], new
    for row in short:
        yield [row], longest[row]


def _devices(model: Any) -> list[int]:
    return [model.device.index or 0] if model.device.type == "cuda" else []


def left_padded(rows: Sequence[Sequence[int]], pad: int, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, (len(rows), longest) each, padded on the left."""
    width = max(len(ids) for ids in rows)
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask
