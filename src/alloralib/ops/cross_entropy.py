"""Cross-entropy behind a frozen output layer, row by row, without ever holding all logits.

    Z      = X W^T + b                        N x V, computed one tile of rows and columns at a time
    l_n    = log sum_v exp Z_nv - Z_n,y(n)
    D_n    = sum_v p_nv W_v - W_y(n)          N x d, p_n = softmax(Z_n)
    dL/dX  = diag(dL/dl) D

The loss of a row depends on that row of X alone, so D can be computed in the forward pass while the row's logits exist,
whatever the losses are used for later. There is one product to make the logits and one to use them; nothing of size V is kept
and nothing is recomputed in the backward pass. Liger's fused linear cross-entropy does this for a summed loss
(https://github.com/linkedin/Liger-Kernel, `ops/fused_linear_cross_entropy.py`), and so does torch 2.13's
`linear_cross_entropy`. If the weight is trained too, its gradient needs dL/dl, and the logits are computed as usual.

sum_v p_nv W_v is attention with queries X and keys and values W, and is computed as in FlashAttention (Dao et al. 2022,
arXiv:2205.14135, section 3.1): tile by tile, relative to the largest logit so far, rescaling earlier sums whenever that grows.
A tile stays in the cache between its two products, and W is read once for `ROWS` rows.

The label's own share is kept out of the sums: with q_n = sum_(v != y) exp Z_nv the loss is log(1 + q_n / exp Z_n,y), and
1 - p_n,y = sigmoid(log q_n - Z_n,y). Both are accurate for a label that is almost certain, where rounding would lose
1 - p_n,y.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import matmul
from ._function import apply
from .precision import compute_dtype, without_autocast

ENTRIES_ON_CPU = 2**21
"""Logits in one tile on a CPU: 8 MiB in float32, and as much again for their exponentials."""
ENTRIES_ELSEWHERE = 2**23
"""Logits in one tile on other devices, where every operation is a kernel launch that has to be worth it."""
ROWS = 1024
"""Largest number of rows in a tile: the sums over columns stay in the cache too."""


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, entries: int) -> Tensor:
        dtype = compute_dtype(x)
        losses: list[Tensor] = []
        directions: list[Tensor] = []
        with without_autocast(x.device.type):
            W, b = weight.to(dtype), None if bias is None else bias.to(dtype)
            pieces = max(1, -(-len(x) // ROWS))  # of about equal size; one piece may be empty
            for X, y in zip(x.to(dtype).tensor_split(pieces), labels.tensor_split(pieces), strict=True):
                softmax = _Softmax(y, _softmax_dtype(dtype))
                total = X.new_zeros(X.shape, dtype=softmax.dtype) if ctx.needs_input_grad[0] else None
                width = max(1, entries // max(1, len(y)))
                for first in range(0, len(W), width):
                    columns = slice(first, first + width)
                    Z = matmul.linear(X, W[columns], None if b is None else b[columns])
                    exponentials, rescale = softmax.add(Z.to(softmax.dtype), first)
                    if total is not None:
                        _add_product_(total.mul_(rescale), exponentials, W[columns], dtype)
                losses.append(softmax.loss())
                if total is not None:
                    normalizer, missing = softmax.shares()
                    directions.append(torch.addcmul(total * normalizer, W[y].to(total.dtype), missing, value=-1).to(dtype))
        ctx.save_for_backward(torch.cat(directions) if directions else None)
        ctx.dtype = x.dtype
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # not `once`, which sees nothing where dL/dl is a constant: D depends on x, too
            raise RuntimeError("linear_cross_entropy has no second derivative; use alloralib.fast_paths(logits=False)")
        (D,) = ctx.saved_tensors
        dX = None if D is None else (grad_outputs[0].unsqueeze(1) * D).to(ctx.dtype)
        return dX, None, None, None, None


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, *, entries: int | None = None
) -> Tensor:
    """Cross-entropy of every row of hidden @ weight^T + bias with its label, in nats.

    Args:
        hidden: (N, d), floating; N may be 0. Products are computed in its dtype, or in autocast's where that is on.
        weight: (V, d). If it or the bias requires a gradient, all logits are computed at once and kept.
        bias: (V,) or None.
        labels: (N,), int64, each in [0, V).
        entries: logits in one tile, which has at least one column of at most `ROWS` rows; the default depends on the device.

    Returns:
        (N,), in float32, or float64 if that is the dtype of the products. Second derivatives raise a RuntimeError.
    """
    if weight.requires_grad or (bias is not None and bias.requires_grad):
        return cross_entropy(F.linear(hidden, weight, bias), labels)
    entries = entries or (ENTRIES_ON_CPU if hidden.device.type == "cpu" else ENTRIES_ELSEWHERE)
    return apply(_LinearCrossEntropy, hidden, weight, bias, labels, entries)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of every row of logits, (N, V), with its label, (N,), in nats; the softmax is in float32 or wider."""
    return F.cross_entropy(logits.to(_softmax_dtype(logits.dtype)), labels, reduction="none")


class _Softmax:
    """The softmax of n rows whose columns arrive a few at a time, from left to right.

    Args:
        y: (n,), the column of each row's label.
        dtype: of the logits and of the results.
    """

    def __init__(self, y: Tensor, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._y = y.unsqueeze(1)
        zeros = y.new_zeros((len(y), 1), dtype=dtype)
        self._highest = zeros + torch.finfo(dtype).min  # the largest logit so far
        self._label = zeros + torch.nan  # the label's own logit, once seen; a label outside [0, V) gives a NaN loss
        self._others = zeros  # sum of exp(z - highest) over all columns but the label's

    def add(self, z: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Add the columns from `start` on.

        Args:
            z: (n, columns), overwritten.

        Returns:
            exp(z - highest), (n, columns), zero at the label; and exp(old highest - highest), (n, 1), the factor for sums of
            such exponentials over the columns before.
        """
        place = self._y - start
        inside = (place >= 0) & (place < z.shape[1])
        place = place.clamp(0, z.shape[1] - 1)
        self._label = torch.where(inside, z.gather(1, place), self._label)
        highest = torch.maximum(self._highest, z.amax(dim=1, keepdim=True))
        rescale, self._highest = (self._highest - highest).exp(), highest

        exponentials = z.sub_(highest).exp_()
        exponentials.scatter_(1, place, exponentials.gather(1, place).masked_fill(inside, 0))
        self._others = self._others * rescale + exponentials.sum(dim=1, keepdim=True)
        return exponentials, rescale

    def loss(self) -> Tensor:
        """(n,), after the last column."""
        odds = self._log_odds_against()
        return torch.logaddexp(odds, odds.new_zeros(())).squeeze(1)

    def shares(self) -> tuple[Tensor, Tensor]:
        """After the last column: 1 / sum_v exp(z_v - highest), and 1 - p of the label; (n, 1) each."""
        total = (self._label - self._highest).exp() + self._others
        return total.reciprocal(), self._log_odds_against().sigmoid()

    def _log_odds_against(self) -> Tensor:
        """log((1 - p) / p) of the label, (n, 1)."""
        return self._others.log() + (self._highest - self._label)


def _add_product_(total: Tensor, left: Tensor, weight: Tensor, dtype: torch.dtype) -> None:
    """total += left @ weight, with the product in `dtype`."""
    if total.dtype == dtype:
        matmul.add_linear_(total, left, weight.mT)
    else:
        total.add_(matmul.linear(left.to(dtype), weight.mT))


def _softmax_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
