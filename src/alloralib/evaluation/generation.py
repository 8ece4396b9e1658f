"""Generate answers: tokens of the prompts, then greedy or sampled continuations, in batches of prompts of similar length."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from ..errors import DataError, ModelError
from .batching import Progress, evaluation_mode, longest_first, no_progress
from .limits import Limits, check_room, check_token_ids, limits_of

Prompt = str | Sequence[dict[str, Any]]
"""A text to continue, or a conversation for the assistant to answer."""


def encode_prompt(tokenizer: Any, prompt: Prompt) -> list[int]:
    """The tokens of a prompt.

    A text is tokenized as in training: with the special tokens that the tokenizer puts in front, without those at the
    end. A conversation is rendered by the chat template, up to the start of the assistant's answer.

    Raises:
        ModelError: a conversation, and the tokenizer has no chat template.
        DataError: a prompt without tokens.
    """
    if isinstance(prompt, str):
        ids: list[int] = tokenizer(prompt)["input_ids"]
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
        ids = tokenizer.apply_chat_template(list(prompt), add_generation_prompt=True, tokenize=True, return_dict=True)[
            "input_ids"
        ]
    if not ids:
        raise DataError(f"the tokenizer makes no token of the prompt {prompt!r}", remedy="give a prompt with text")
    return ids


def _ends_with(tokenizer: Any, text: str, token: int) -> bool:
    return text.rstrip().endswith(tokenizer.convert_ids_to_tokens(token))


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """The tokens that end an answer: end of text, and the token with which the chat template ends the assistant's turn."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends = {tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])}
    if tokenizer.chat_template:
        turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "answer"}]
        text: str = tokenizer.apply_chat_template(turn, tokenize=False)
        after = tokenizer(text.rpartition("answer")[2], add_special_tokens=False)["input_ids"]
        ends |= {token for token in after[:1] if token in tokenizer.all_special_ids}
    return sorted(token for token in ends if token is not None)


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
        DataError: a prompt that leaves no room for an answer, or with a token that the model has no embedding for.
    """
    encoded = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    limits = limits_of(model)
    check_token_ids(encoded, limits, tokenizer, _where)
    check_room(encoded, limits, _where)
    ends = end_tokens(model, tokenizer)
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
                answers[row] = text
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
