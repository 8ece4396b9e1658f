"""A classifier's batch in parts of similar length, where padding would cost more than another call.

    padded           cut
    a a a a a a      a a a a a a
    b b b b b .      b b b b b .
    c c . . . .      c c
    d d . . . .      d d

A language model's rows are put side by side (`packing`); a classifier looks for the one token of each row that it answers
from, so its rows stay rows. Loss and gradients of the parts, weighted by their rows, are those of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..evaluation.answers import MOST_PADDING
from .batches import right_padded

CALL = 64
"""Tokens whose time a call and its backward pass take besides that of their own. On two cores 32 and 256 took longer on MiniLM
and SmolLM2-135M, or as long. A GPU computes thousands of tokens while the calls are made: batches are not cut there."""
_OF_TOKENS = frozenset(("input_ids", "attention_mask", "token_type_ids"))


def cut(inputs: dict[str, Any]) -> list[dict[str, Any]]:
    """The batch in parts, or as it is where it has little padding, is not on a CPU, or has something that is not known here.

    Args:
        inputs: input_ids and attention_mask (batch, length), with padding on the right; labels (batch,).

    Returns:
        batches of the same form, which have every row once between them.
    """
    ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
    if ids is None or mask is None or ids.device.type != "cpu" or not inputs.keys() <= _OF_TOKENS | {"labels"}:
        return [inputs]
    lengths = right_padded(mask)
    if lengths is None or len(chosen := parts(lengths)) == 1:
        return [inputs]
    made: list[dict[str, Any]] = []
    for rows in chosen:
        at, width = torch.tensor(rows), max(lengths[row] for row in rows)
        made.append({name: _part(value, at, width, name) for name, value in inputs.items()})
    return made


def _part(value: Tensor, rows: Tensor, width: int, name: str) -> Tensor:
    return value[rows, :width] if name in _OF_TOKENS else value[rows]


def parts(lengths: Sequence[int]) -> list[list[int]]:
    """Which rows to call the model with together: what costs least in padding and calls.

    Args:
        lengths: tokens of every row.

    Returns:
        row numbers of each part, the longest rows first; all of them in one where padding adds less than `MOST_PADDING`.

    >>> parts([9, 80, 81, 8])
    [[2, 1], [0, 3]]
    """
    everything = list(range(len(lengths)))
    if max(lengths) * len(lengths) <= (1 + MOST_PADDING) * sum(lengths):
        return [everything]
    order = sorted(everything, key=lambda row: -lengths[row])
    # among rows in order of length the best parts are runs; best[k] is the least cost of the first k, begun at start[k]
    best, start = [0], [0]
    for end in range(1, len(order) + 1):
        cost, begin = min((best[b] + CALL + lengths[order[b]] * (end - b), b) for b in range(end))
        best.append(cost)
        start.append(begin)
    found: list[list[int]] = []
    end = len(order)
    while end:
        found.append(order[start[end] : end])
        end = start[end]
    return found[::-1] if len(found) > 1 else [everything]
