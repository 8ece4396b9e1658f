"""Cross-entropy behind a frozen output layer, row by row, with never more than a tile of the logits at a time.

    Z      = X W^T + b                        N x V, of which a tile of some rows and columns exists at a time
    l_n    = log sum_v exp Z_nv - Z_n,y(n)
    D_n    = sum_v p_nv W_v - W_y(n)          N x d, p_n = softmax(Z_n)
    dL/dX  = diag(dL/dl) D

A row's loss depends on that row of X alone, so D can be computed in the forward pass, while the row's logits are there,
whatever the loss is used for later: one product to make the logits and one to use them, nothing of size V is kept, and
no product is computed again in the backward pass. That is how Liger's fused linear cross-entropy
(https://github.com/linkedin/Liger-Kernel, `ops/fused_linear_cross_entropy.py`) treats a summed loss. torch 2.13's
`linear_cross_entropy` does it too, for a sum and without the entropy and the hits that a trainer logs. Where the weight
is trained as well, its gradient needs dL/dl, and the plain path is taken.

sum_v p_nv W_v is attention with X for queries and W for keys and values, and is taken as FlashAttention takes it (Dao et al.
2022, arXiv:2205.14135, section 3.1): tile by tile, with the largest logit so far for a reference and what was summed
before made smaller where that grows. A tile stays in the cache between its two products, and W is read once for `ROWS` rows.

The label's own share is left out of all sums: with q_n = sum_(v != y) exp Z_nv the loss is log(1 + q_n / exp Z_n,y), and
1 - p_n,y = sigmoid(log q_n - Z_n,y), both exact for a label that is all but certain, where 1 - p_n,y is lost in rounding.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import products
from ._function import apply_many
from .precision import compute_dtype, without_autocast

CACHED = 2**21
"""Logits that exist at a time on a CPU where nothing else is asked for: 8 MiB in float32, and as much again for their
exponentials."""
LAUNCHED = 2**23
"""The same elsewhere, where every operation is a launch that has to be worth it."""
ROWS = 1024
"""Rows of a tile at most: what is summed for them stays in the cache too."""


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
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, entries: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        dtype = compute_dtype(x)
        found: list[TokenScores] = []
        directions: list[Tensor] = []
        with without_autocast(x.device.type):
            w, b = weight.to(dtype), None if bias is None else bias.to(dtype)
            for start, end in _row_pieces(len(x)):
                rows, y = x[start:end].to(dtype), labels[start:end]
                softmax = _Softmax(y, _softmax_dtype(dtype))
                towards = rows.new_zeros(rows.shape, dtype=softmax.dtype) if ctx.needs_input_grad[0] else None
                for first, last in _column_pieces(len(w), len(y), entries):
                    z = products.linear(rows, w[first:last], None if b is None else b[first:last])
                    exponentials, shrunk = softmax.take(z.to(softmax.dtype), first)
                    if towards is not None:
                        _add_product_(towards.mul_(shrunk), exponentials, w[first:last], dtype)
                found.append(softmax.scores())
                if towards is not None:
                    scale, missing = softmax.shares()
                    directions.append(torch.addcmul(towards * scale, w[y].to(towards.dtype), missing, value=-1).to(dtype))
        loss, entropy, hit = (torch.cat(column) for column in zip(*found, strict=True))
        ctx.save_for_backward(torch.cat(directions) if directions else None)
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
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, *, entries: int | None = None
) -> TokenScores:
    """Cross-entropy of every row of hidden @ weight^T + bias with its label.

    Args:
        hidden: (N, d), floating; N may be 0. Products are taken in its dtype, or in autocast's where that is on; the
            softmax in float32, or in float64 if that is the dtype.
        weight: (V, d). Where it or the bias requires a gradient, all logits are made at once and kept.
        bias: (V,) or None.
        labels: (N,), int64, each in [0, V).
        entries: logits that exist at a time, at least one of each row of at most `ROWS`; by default as many as the device
            wants.

    Returns:
        of every row; a sum or a mean is the caller's. Second derivatives raise.
    """
    if weight.requires_grad or (bias is not None and bias.requires_grad):
        return cross_entropy(F.linear(hidden, weight, bias), labels, entries=entries)
    entries = entries or _entries(hidden.device)
    return TokenScores(*apply_many(_LinearCrossEntropy, hidden, weight, bias, labels, entries))


def cross_entropy(logits: Tensor, labels: Tensor, *, entries: int | None = None) -> TokenScores:
    """`linear_cross_entropy` where the logits are there already: (N, V), differentiated through.

    The softmax is taken in float32, or in float64 if that is the dtype.
    """
    wide = _softmax_dtype(logits.dtype)
    found: list[TokenScores] = []
    with torch.no_grad():
        for start, end in _row_pieces(len(logits)):
            softmax = _Softmax(labels[start:end], wide)
            for first, last in _column_pieces(logits.shape[1], end - start, entries or _entries(logits.device)):
                softmax.take(logits[start:end, first:last].to(wide, copy=True), first)
            found.append(softmax.scores())
    loss, entropy, hit = (torch.cat(column) for column in zip(*found, strict=True))
    if logits.requires_grad and torch.is_grad_enabled():
        loss = F.cross_entropy(logits.to(wide), labels, reduction="none")
    return TokenScores(loss, entropy, hit)


class _Softmax:
    """The softmax of some rows, of which a few columns are seen at a time, from left to right.

    Args:
        y: (n,), the column of each row's label.
        dtype: of the logits and of what is found.
    """

    def __init__(self, y: Tensor, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._y = y.unsqueeze(1)
        zeros = y.new_zeros((len(y), 1), dtype=dtype)
        self._highest = zeros + torch.finfo(dtype).min  # the largest logit so far
        self._label = zeros + torch.nan  # the label's own logit, once seen: a label outside gives a loss that is no number
        self._others = zeros  # sum over all but the label of exp(z - highest)
        self._weighted = zeros  # the same of exp(z - highest) (z - highest)
        self._hit = torch.zeros_like(self._y, dtype=torch.bool)

    def take(self, z: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """See the columns from `start` on.

        Args:
            z: (n, columns), overwritten.

        Returns:
            exp(z - highest), (n, columns), zero at the label; exp(highest so far - highest), (n, 1), by which sums of
            such exponentials over the columns before have to be multiplied.
        """
        place = self._y - start
        inside = (place >= 0) & (place < z.shape[1])
        place = place.clamp(0, z.shape[1] - 1)
        own, largest = z.gather(1, place), z.amax(dim=1, keepdim=True)
        leads = _is_first(z, place, inside) & (own > self._highest)
        self._hit = torch.where(inside, leads, self._hit & (largest <= self._highest))
        self._label = torch.where(inside, own, self._label)
        highest = torch.maximum(self._highest, largest)
        fallen = self._highest - highest
        shrunk, self._highest = fallen.exp(), highest

        exponentials = z.sub_(highest).exp()
        exponentials.scatter_(1, place, exponentials.gather(1, place).masked_fill(inside, 0))
        self._weighted = (self._weighted + fallen * self._others) * shrunk + z.mul_(exponentials).sum(dim=1, keepdim=True)
        self._others = self._others * shrunk + exponentials.sum(dim=1, keepdim=True)
        return exponentials, shrunk

    def scores(self) -> TokenScores:
        """When all columns were seen."""
        own, total = self._own_and_total()
        odds = self._odds_against()
        mean = (self._weighted + own * (self._label - self._highest)) / total
        columns = torch.logaddexp(odds, odds.new_zeros(())), total.log() - mean, self._hit
        return TokenScores(*(column.squeeze(1) for column in columns))

    def shares(self) -> tuple[Tensor, Tensor]:
        """1 / sum_v exp(z - highest), and what the label's probability lacks to 1; (n, 1) each."""
        return self._own_and_total()[1].reciprocal(), self._odds_against().sigmoid()

    def _own_and_total(self) -> tuple[Tensor, Tensor]:
        own = (self._label - self._highest).exp()
        return own, own + self._others

    def _odds_against(self) -> Tensor:
        """Their logarithm."""
        return self._others.log() + (self._highest - self._label)


def _is_first(z: Tensor, place: Tensor, rows: Tensor) -> Tensor:
    """Whether a place is the first of the largest in its row, where that is asked; (n, 1), false elsewhere."""
    if z.device.type != "cpu":  # which rows are few would have to be waited for
        return rows & (z.argmax(dim=1, keepdim=True) == place)
    asked = rows.squeeze(1).nonzero().squeeze(1)
    first = torch.zeros_like(rows)
    first[asked] = z[asked].argmax(dim=1, keepdim=True) == place[asked]
    return first


def _add_product_(total: Tensor, left: Tensor, weight: Tensor, dtype: torch.dtype) -> None:
    """total += left @ weight, the product in `dtype`."""
    if total.dtype == dtype:
        products.add_linear_(total, left, weight.mT)
    else:
        total.add_(products.linear(left.to(dtype), weight.mT))


def _softmax_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _entries(device: torch.device) -> int:
    return CACHED if device.type == "cpu" else LAUNCHED


def _row_pieces(rows: int) -> Iterator[tuple[int, int]]:
    """Start and end of pieces of about one size; at least one, which may be empty.

    >>> list(_row_pieces(ROWS + 1)), list(_row_pieces(0))
    ([(0, 512), (512, 1025)], [(0, 0)])
    """
    count = max(1, -(-rows // ROWS))
    return itertools.pairwise(rows * k // count for k in range(count + 1))


def _column_pieces(columns: int, rows: int, entries: int) -> Iterator[tuple[int, int]]:
    """Start and end of pieces of one width but for the last.

    >>> list(_column_pieces(10, 2, 8))
    [(0, 4), (4, 8), (8, 10)]
    """
    width = max(1, entries // max(1, rows))
    return ((start, min(start + width, columns)) for start in range(0, columns, width))
