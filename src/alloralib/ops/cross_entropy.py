"""Cross-entropy behind a frozen output layer, row by row, with never more than a chunk of the logits at a time.

    Z      = X W^T + b                        N x V, of which `chunk` rows exist at a time
    l_n    = log sum_v exp Z_nv - Z_n,y(n)
    D_n    = sum_v p_nv W_v - W_y(n)          N x d, p_n = softmax(Z_n)
    dL/dX  = diag(dL/dl) D

A row's loss depends on that row of X alone, so D can be computed in the forward pass, while the row's logits are there,
whatever the loss is used for later: one product to make the logits and one to use them, nothing of size V is kept, and
no product is computed again in the backward pass. That is how Liger's fused linear cross-entropy
(https://github.com/linkedin/Liger-Kernel, `ops/fused_linear_cross_entropy.py`) treats a summed loss. torch 2.13's
`linear_cross_entropy` does it too, for a sum and without the entropy and the hits that a trainer logs. Where the weight
is trained as well, its gradient needs dL/dl, and the plain path is taken.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import products
from ._function import apply_many
from .precision import compute_dtype, without_autocast

CHUNK_ENTRIES = 8 * 2**20 - 2**10
"""Logits that exist at a time where no chunk is asked for: a little less than 32 MiB in float32, and as much again for the
softmax. What is larger comes from the kernel page by page each time, and smaller chunks leave the products too narrow."""


class TokenScores(NamedTuple):
    """What a model thinks of each of N labels.

    Attributes:
        loss: (N,), cross-entropy in nats; float32, or float64 where the logits are.
        entropy: (N,), of the predicted distribution, in nats; without gradient.
        hit: (N,), bool, whether the label is the first of the most likely tokens.
    """

    loss: Tensor
    entropy: Tensor
    hit: Tensor


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, chunk: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        dtype = compute_dtype(x)
        wide = _softmax_dtype(dtype)
        direction = torch.empty_like(x, dtype=dtype) if ctx.needs_input_grad[0] else None
        parts: list[TokenScores] = []
        with without_autocast(x.device.type):
            w, b = weight.to(dtype), None if bias is None else bias.to(dtype)
            pieces = _pieces(len(x), chunk)
            p = x.new_empty(pieces[0][1], len(w), dtype=wide)
            for start, end in pieces:
                z = products.linear(x[start:end].to(dtype), w, b)
                y = labels[start:end]
                parts.append(_scores(z.to(wide), y, p[: end - start]))
                if direction is not None:
                    minus_one = p.new_full((1, 1), -1.0).expand(len(y), 1)
                    towards = p[: end - start].scatter_add_(1, y.unsqueeze(1), minus_one)
                    direction[start:end] = products.linear(towards.to(dtype), w.mT)
        loss, entropy, hit = (torch.cat(column) for column in zip(*parts, strict=True))
        ctx.save_for_backward(direction)
        ctx.dtype = x.dtype
        ctx.mark_non_differentiable(entropy, hit)
        ctx.set_materialize_grads(False)
        return loss, entropy, hit

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # not `once`: dL/dl is often a constant, and D would be taken for one in silence
            raise RuntimeError("no second derivative here: alloralib.fast_paths(logits=False)")
        (direction,) = ctx.saved_tensors
        grad = grad_outputs[0]
        if grad is None or direction is None:
            return None, None, None, None, None
        return (grad.unsqueeze(1) * direction).to(ctx.dtype), None, None, None, None


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, *, chunk: int | None = None
) -> TokenScores:
    """Cross-entropy of every row of hidden @ weight^T + bias with its label.

    Args:
        hidden: (N, d), floating; N may be 0. Products are taken in its dtype, or in autocast's where that is on; the
            softmax in float32, or in float64 if that is the dtype.
        weight: (V, d). Where it or the bias requires a gradient, all logits are made at once and kept.
        bias: (V,) or None.
        labels: (N,), int64, each in [0, V).
        chunk: rows whose logits exist at a time, at least 1; by default as many as make `CHUNK_ENTRIES` logits.

    Returns:
        of every row; a sum or a mean is the caller's. Second derivatives raise.
    """
    if weight.requires_grad or (bias is not None and bias.requires_grad):
        return cross_entropy(F.linear(hidden, weight, bias), labels, chunk=chunk)
    return TokenScores(*apply_many(_LinearCrossEntropy, hidden, weight, bias, labels, chunk or _chunk(len(weight))))


def cross_entropy(logits: Tensor, labels: Tensor, *, chunk: int | None = None) -> TokenScores:
    """`linear_cross_entropy` where the logits are there already: (N, V), differentiated through.

    The softmax is taken in float32, or in float64 if that is the dtype.
    """
    wide = _softmax_dtype(logits.dtype)
    with torch.no_grad():
        pieces = _pieces(len(logits), chunk or _chunk(logits.shape[1]))
        p = logits.new_empty(pieces[0][1], logits.shape[1], dtype=wide)
        parts = [_scores(logits[start:end].to(wide), labels[start:end], p[: end - start]) for start, end in pieces]
    loss, entropy, hit = (torch.cat(column) for column in zip(*parts, strict=True))
    if logits.requires_grad and torch.is_grad_enabled():
        loss = F.cross_entropy(logits.to(wide), labels, reduction="none")
    return TokenScores(loss, entropy, hit)


def _scores(z: Tensor, y: Tensor, out: Tensor) -> TokenScores:
    """Of the rows of Z, whose softmax is left in `out`."""
    highest, first = z.max(dim=1)
    p = torch.softmax(z, dim=1, out=out)
    # the largest probability is at least 1/V, so its logarithm is exact enough to give the partition function
    total = highest - p.gather(1, first.unsqueeze(1)).squeeze(1).log()
    loss = total - z.gather(1, y.unsqueeze(1)).squeeze(1)
    return TokenScores(loss, total - _inner(p, z), first == y)


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """(N, V), (N, V) -> (N,), without their product."""
    return torch.bmm(a.unsqueeze(1), b.unsqueeze(2)).flatten()


def _softmax_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _chunk(vocabulary: int) -> int:
    return max(1, CHUNK_ENTRIES // vocabulary)


def _pieces(rows: int, chunk: int) -> list[tuple[int, int]]:
    """Start and end of each chunk, the first of which is as large as any; at least one, which may be empty.

    >>> _pieces(7, 3), _pieces(0, 3)
    ([(0, 3), (3, 5), (5, 7)], [(0, 0)])
    """
    count = max(1, -(-rows // chunk))
    size, larger = divmod(rows, count)
    starts = [k * size + min(k, larger) for k in range(count + 1)]
    return list(itertools.pairwise(starts))
