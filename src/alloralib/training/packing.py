"""Short rows side by side in one, where padding would cost more.

    padded           packed
    a a a a a a      a a a a a a
    b b . . . .      b b c c c .
    c c c . . .

The tokens of a row see each other and nobody else, and their positions begin at zero, as before: that is what transformers'
models do where positions begin anew and nothing is said of a mask (`masking_utils.find_packed_sequence_indices`). Not all
models go by it (a state that runs along the row, as Mamba's, does not stop there), and no table says which; so each is tried
once, on a handful of tokens.

A batch stays what it was to the trainer: its rows, their tokens and their scores. Only the model sees other rows. TRL's
`packing` puts rows of different steps together, and its `padding_free` makes one row of a batch, with attention over all of it.

Foreign private API used here: `_compiled_call_impl`, by which a torch module knows that it is compiled.
"""

from __future__ import annotations

import heapq
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..adapters.siblings import packs_rows
from ..evaluation.answers import MOST_PADDING, answering
from ..evaluation.next_token import IGNORED, NextTokens, score_next_tokens, takes
from ..ops.cross_entropy import TokenScores
from .batches import right_padded

ATTENTION = 3
"""Hidden sizes that a row must be long for attention to take as long as the rest of a layer. By its operations it would be 6
(12 d^2 weights and 2 d multiplications per token seen); masked attention runs at half the rate of a product."""
TRIED = (5, 3, 4, 2)
"""Tokens of the rows that a model is tried on: two of them beside the two others."""


class Packed(NamedTuple):
    """A batch as the model sees it.

    Attributes:
        inputs: input_ids and position_ids, (bins, width), and what else was passed on.
        labels: (bins, width); `IGNORED` at the first token of each row, which is never learnt, and behind the last.
        order: (labelled tokens,), for each labelled token of the padded batch, row by row, which one it is here.
    """

    inputs: dict[str, Any]
    labels: Tensor
    order: Tensor


def score_batch(model: Any, inputs: dict[str, Any], labels: Tensor, *, call: Callable[..., Any]) -> NextTokens:
    """`score_next_tokens`, by packed rows where the batch has much padding and the model allows it.

    Args:
        model: a causal language model.
        inputs: of its forward pass, without the labels.
        labels: (batch, length), int64; `IGNORED` where nothing is learnt.
        call: what to call instead of the model.
    """
    # asked in every process at the first batch, padded or not: with shards they have to make the same calls
    if packs_rows() and why_not_packed(model, call, labels.device) is None:
        packed = pack(inputs, labels, model.config.get_text_config())
        if packed is not None:
            scores, _, output = score_next_tokens(model, packed.inputs, packed.labels, call=call)
            order = packed.order.to(scores.loss.device)
            return NextTokens(TokenScores(*(column[order] for column in scores)), labels[:, 1:] != IGNORED, output)
    return score_next_tokens(model, inputs, labels, call=call)


def pack(inputs: dict[str, Any], labels: Tensor, config: Any) -> Packed | None:
    """A padded batch with its rows side by side; None where it has little padding, or something that is not known here.

    Args:
        inputs: input_ids and attention_mask, (batch, length), with padding on the right; other tensors with rows are
            not known here.
        labels: (batch, length).
        config: the model's, with its hidden size and, where it has one, its longest row.
    """
    ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
    rest = {key: value for key, value in inputs.items() if key not in ("input_ids", "attention_mask")}
    if ids is None or mask is None or mask.shape != ids.shape:
        return None
    if any(isinstance(value, Tensor) and value.dim() > 0 for value in rest.values()):  # a number is of no row
        return None
    lengths = right_padded(mask)
    if lengths is None:
        return None
    # positions begin anew, but a model may keep a mask of as many places as it has positions
    bins = arrange(lengths, config.hidden_size, getattr(config, "max_position_embeddings", None))
    if bins is None:
        return None
    width = widest_bin(bins, lengths)
    sources: list[list[int]] = []  # where in the flattened batch a token comes from
    positions: list[list[int]] = []
    for rows in bins:
        source = [row * ids.shape[1] + at for row in rows for at in range(lengths[row])]
        position = [at for row in rows for at in range(lengths[row])]
        empty = width - len(source)
        sources.append(source + [-1] * empty)
        positions.append(position + list(range(empty)))
    place = torch.tensor(sources, device=ids.device)
    position_ids = torch.tensor(positions, device=ids.device)
    packed_labels = labels.flatten()[place].masked_fill((place < 0) | (position_ids == 0), IGNORED)
    learnt = packed_labels[:, 1:] != IGNORED
    return Packed(
        {"input_ids": ids.flatten()[place], "position_ids": position_ids, **rest, "use_cache": False},
        packed_labels,
        place[:, 1:][learnt].argsort(),
    )


def arrange(lengths: Sequence[int], hidden: int, widest: int | None = None) -> list[list[int]] | None:
    """Which rows to put side by side; None where all stay apart.

    Rows go, the longest first, to the shortest bin. How many bins there are is what costs least: padding, and attention, which
    looks at all places of a bin.

    Args:
        lengths: tokens of every row.
        hidden: the model's hidden size.
        widest: places that a bin may have; None for any number.

    >>> arrange([6, 2, 3], 4), arrange([6, 2, 3], 100)
    ([[0], [2, 1]], [[0, 2, 1]])
    """
    longest, tokens = max(lengths), sum(lengths)
    if min(lengths) < 1 or longest * len(lengths) <= (1 + MOST_PADDING) * tokens:
        return None
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    found: list[list[int]] | None = None
    least = _cost(len(lengths), longest, hidden)
    for count in range(1, len(lengths)):
        bins: list[list[int]] = [[] for _ in range(count)]
        filled = [(0, k) for k in range(count)]
        for row in order:
            full, k = filled[0]
            bins[k].append(row)
            heapq.heapreplace(filled, (full + lengths[row], k))
        width = widest_bin(bins, lengths)
        cost = _cost(count, width, hidden)
        if cost < least and (widest is None or width <= widest):
            least, found = cost, bins
        if width == longest:  # more bins have only more padding
            break
    return found


def widest_bin(bins: Sequence[Sequence[int]], lengths: Sequence[int]) -> int:
    """Places that every bin gets: the tokens of the fullest.

    >>> widest_bin([[0], [2, 1]], [6, 2, 3])
    6
    """
    return max(sum(lengths[row] for row in rows) for rows in bins)


def _cost(count: int, width: int, hidden: int) -> float:
    return count * width * (1 + width / (ATTENTION * hidden))


_reasons: weakref.WeakKeyDictionary[nn.Module, str | None] = weakref.WeakKeyDictionary()


def why_not_packed(model: Any, call: Callable[..., Any], device: torch.device) -> str | None:
    """Why the rows of a model's batches are padded; None where they are packed. The model is tried once.

    Args:
        model: a causal language model.
        call: what to call instead of the model.
        device: of its inputs.
    """
    if model not in _reasons:
        _reasons[model] = _tried(model, call, device)
    return _reasons[model]


def _tried(model: Any, call: Callable[..., Any], device: torch.device) -> str | None:
    if not takes(model, "position_ids"):
        return "the model takes no positions"
    config = model.config.get_text_config()
    if getattr(model.config, "output_router_logits", False):
        return "the router's loss is made of all places of a batch"
    if not hasattr(config, "hidden_size"):
        return "the model's configuration does not name its hidden size"
    if any(module._compiled_call_impl is not None for module in model.modules()):
        return "the model is compiled: packed batches would be programs of their own"
    ids = torch.arange(len(TRIED) * max(TRIED), device=device).view(len(TRIED), -1) % config.vocab_size
    mask = (torch.arange(max(TRIED), device=device) < torch.tensor(TRIED, device=device).unsqueeze(1)).long()
    packed = pack({"input_ids": ids, "attention_mask": mask}, ids, config)
    assert packed is not None
    try:
        with answering(model):
            expected = call(input_ids=ids, attention_mask=mask, use_cache=False).logits
            got = call(**packed.inputs).logits
    except Exception as error:  # whatever a model's own code makes of it, it can still be trained on padded rows
        return f"the model fails where rows are side by side: {type(error).__name__}: {error}"
    learnt = packed.labels[:, 1:] != IGNORED
    before = expected[:, 1:][mask[:, 1:].bool()]
    now = got[:, 1:][learnt][packed.order]
    tolerance = max(1e-3, 4 * torch.finfo(before.dtype).eps)
    if not bool((now - before).norm() <= tolerance * before.norm()):
        return "the model gives other logits where rows are side by side"
    return None
