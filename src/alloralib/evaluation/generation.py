"""Generate answers: tokens of the prompts, then greedy or sampled continuations, in batches of prompts of similar length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from ..errors import DataError, ModelError
from .batching import Progress, evaluation_mode, longest_first, no_progress
from .positions import check_positions

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
        max_new_tokens: longest answer, in tokens.
        batch_size: prompts per batch.
        temperature: 0 takes the most probable token at every step. Above 0, tokens are sampled.
        seed: of the sampling.
        progress: called with the number of prompts that were just answered.

    Returns:
        the answers, in the order of the prompts, without special tokens. White space around them is kept.

    Raises:
        DataError: the model has not enough positions for a prompt and its answer.
    """
    encoded = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    remedy = f"shorten the prompt, or generate fewer tokens than {max_new_tokens} (--max-new-tokens)"
    check_positions(model, [len(ids) + max_new_tokens for ids in encoded], what="prompt", remedy=remedy)
    ends = end_tokens(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (ends or [0])[0]
    sampling: dict[str, Any] = {"temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature > 0 else {}
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=temperature > 0, eos_token_id=ends or None, pad_token_id=pad, **sampling
    )
    answers = [""] * len(encoded)
    with evaluation_mode(model), torch.random.fork_rng(devices=_devices(model)):
        torch.manual_seed(seed)
        for rows in longest_first([len(ids) for ids in encoded], batch_size):
            ids, mask = left_padded([encoded[i] for i in rows], pad, model.device)
            generated = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)[:, ids.shape[1] :]
            for row, text in zip(rows, tokenizer.batch_decode(generated, skip_special_tokens=True), strict=True):
                answers[row] = text
            progress(len(rows))
    return answers


def _devices(model: Any) -> list[int]:
    return [model.device.index or 0] if model.device.type == "cuda" else []


def left_padded(rows: Sequence[Sequence[int]], pad: int, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, (len(rows), longest) each, padded on the left."""
    width = max(len(ids) for ids in rows)
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask
