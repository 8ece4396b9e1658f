"""Batches of examples of similar length, and a model in evaluation mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

Progress = Callable[[int], object]
"""A progress callback. It is called with the number of rows that were just finished."""
Collate = Callable[[list[Any]], Any]

MAX_PADDING = 0.05
"""Padding that a scoring batch may have, as a share of its own tokens."""
MIN_TOKENS = 256
"""Tokens, padding included, that keep a processor busy. A smaller batch is not split because of its padding."""

_MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "pixel_values", "labels")


def no_progress(done: int) -> None:
    """A progress callback that does nothing."""


def longest_first(
    lengths: Sequence[int], batch_size: int, *, max_padding: float | None = None, min_tokens: int = MIN_TOKENS
) -> Iterator[list[int]]:
    """Yield the row numbers of each batch. Rows of similar length share a batch, and the longest batch comes first.

    Args:
        lengths: tokens of every row.
        batch_size: rows of a batch at most.
        max_padding: end a batch of at least `min_tokens` tokens before the row that would raise its padding above this
            share of its tokens. Leave it out for generation, whose cost depends on the number of batches more than on
            the tokens in them.

    >>> list(longest_first([3, 9, 4], 2))
    [[1, 2], [0]]
    """
    batch: list[int] = []
    tokens = 0
    for row in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch:
            longest = lengths[batch[0]]
            padded = longest * (len(batch) + 1)
            too_padded = max_padding is not None and padded > (1 + max_padding) * (tokens + lengths[row])
            if len(batch) == batch_size or (too_padded and longest * len(batch) >= min_tokens):
                yield batch
                batch, tokens = [], 0
        batch.append(row)
        tokens += lengths[row]
    if batch:
        yield batch


def batches(examples: Any, collate: Collate, batch_size: int) -> Iterator[tuple[list[int], Any]]:
    """Yield row numbers and the collated batch. Examples without `input_ids` (images) keep their order."""
    has_tokens = "input_ids" in examples.column_names
    lengths = [len(ids) for ids in examples["input_ids"]] if has_tokens else [0] * len(examples)
    for rows in longest_first(lengths, batch_size, max_padding=MAX_PADDING):
        chosen = (examples[i] for i in rows)
        yield rows, collate([{k: v for k, v in example.items() if k in _MODEL_INPUTS} for example in chosen])


@contextmanager
def evaluation_mode(model: Any) -> Iterator[None]:
    """Put the model into evaluation mode without gradients, and restore its mode afterwards, also after an error."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
