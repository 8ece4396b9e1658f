"""The relative step: how far one optimizer step moves BA, measured against the frozen weight W.

A step (dA, dB) changes BA, to first order, by D = dB A + B dA. The learning rate of a relative step is the share of W that one
step changes: the step is multiplied by the c for which

    rms_i ||c D_i|| = rate * rms_i ||W_i||              i over rows, so c = rate ||W||_F / ||D||_F

This is the trust ratio of LARS (arXiv:1708.03888) and LAMB (arXiv:1904.00962), taken on BA instead of on A and B each. It makes
the step independent of the rank and of how the product is split between A and B.

With the taper of ALLoRA, rows that have come far move less: dB_i is also multiplied by

    t_i = 1 / sqrt(1 + eta^2 ||(BA)_i|| / ||W_i||)      ALLoRA's scale of section 4.2, over eta, on the relative row norm

and dA by ||diag(t) B||_F / ||B||_F. eta = 0 means no taper.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .precision import in_dtype, without_autocast
from .scale import scale

CANCELLATION = 1e-3
"""||D|| counts as at least this share of (||dB A||^2 + ||B dA||^2)^(1/2). Where the two parts cancel beyond it, their sum is
rounding, and a step of that size in A and B would be far beyond the first order."""
SMALLEST_ROW = 1e-3
"""A row of W counts as at least this share of the root mean square of all rows."""


def change_norm(A: Tensor, B: Tensor, dA: Tensor, dB: Tensor) -> Tensor:
    """||dB A + B dA||_F without forming a product of that size: O(r^2 (n1 + n2)) operations.

    Args:
        A, dA: (..., r, n2), any floating dtype.
        B, dB: (..., n1, r), the same leading dimensions.

    Returns:
        (...), non-negative, in float32 or the wider dtype of A and B.
    """
    with without_autocast(A.device.type):
        dtype = torch.promote_types(torch.promote_types(A.dtype, B.dtype), torch.float32)
        a, b, da, db = (in_dtype(factor.detach(), dtype) for factor in (A, B, dA, dB))
        of_B = ((db.mT @ db) * (a @ a.mT)).sum(dim=(-2, -1))  # ||dB A||^2
        of_A = ((b.mT @ b) * (da @ da.mT)).sum(dim=(-2, -1))  # ||B dA||^2
        both = ((db.mT @ b) * (a @ da.mT)).sum(dim=(-2, -1))  # <dB A, B dA>
        parts = (of_A + of_B).clamp_(min=0)
        return torch.maximum(parts + 2 * both, CANCELLATION**2 * parts).sqrt_()


def step_factor(change: Tensor, weight_norms: Tensor, rate: float) -> Tensor:
    """c, by which a step is multiplied.

    Args:
        change: (...), from `change_norm`.
        weight_norms: (..., n1), ||W_i||.
        rate: the learning rate, the share of W that one step changes.

    Returns:
        (..., 1, 1). It is 1 where nothing moved or W is zero, as in LAMB.
    """
    target = rate * weight_norms.to(change).square().sum(dim=-1).sqrt()
    return torch.where((change > 0) & (target > 0), target / change, torch.ones_like(change))[..., None, None]


def taper(norms: Tensor, weight_norms: Tensor, eta: float) -> Tensor:
    """t, the factor of every row of dB, in (0, 1].

    Args:
        norms: (..., n1), ||(BA)_i||.
        weight_norms: (..., n1), ||W_i||.
        eta: >= 0; 0 for no taper.
    """
    if eta == 0:
        return torch.ones_like(norms)
    weight_norms = weight_norms.to(norms)
    smallest = SMALLEST_ROW * weight_norms.square().mean(dim=-1, keepdim=True).sqrt()
    known = torch.maximum(weight_norms, smallest).clamp_(min=torch.finfo(norms.dtype).tiny)
    return scale(norms / known, eta) / eta
