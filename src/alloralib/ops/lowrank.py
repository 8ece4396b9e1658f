"""The backward pass that all layer types share: from the gradient at f = c H B^T to B and to the bottleneck H = X A^T.

Rows are tokens: X is N x n2, H is N x r, G = dL/df is N x n1; A is r x n2, B is n1 x r, c is a constant factor.

    dB   = c (G S)^T H                   the gradient of B
    P_A  = c (G S) B                     dL/dH as A sees it:  dA = P_A^T X
    P_X  = c G B                         dL/dH as X sees it:  dX = P_X A

S is what the method does to the gradient, a constant of differentiation:

    plain   LoRA        S = 1
    row     ALLoRA      G S = G diag(s),  s_i  = scale(||(BA)_i||)
    entry   ALLoRA-OD   G S = G * S,      S_ti = scale(|f_ti|)

Only what reaches A and B is scaled. The gradient that travels on to X is LoRA's own (section 4.2 of arXiv:2410.09692).
"""

# pyright: reportConstantRedefinition=false
# (the equations' symbols are capitals)

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import matmul
from .family import GradientAdaptor
from .precision import in_dtype
from .scale import row_scale, scale


class LowRankGrads(NamedTuple):
    """Gradients of one low-rank branch, in the compute dtype."""

    dB: Tensor  # (n1, r)
    P_A: Tensor  # (N, r)
    P_X: Tensor | None  # (N, r); None unless the gradient of X is needed


def lowrank_backward(
    G: Tensor, H: Tensor, A: Tensor, B: Tensor, *, c: float, gradient: GradientAdaptor, eta: float, need_X: bool
) -> LowRankGrads:
    """Gradients at B and at the bottleneck; not differentiable.

    Args:
        G: (N, n1), in the compute dtype.
        H: (N, r), in the compute dtype.
        A: (r, n2), in its own dtype; only its Gram matrix is read.
        B: (n1, r), in its own dtype.
        c: constant factor on the branch.
        gradient: the gradient adaptor.
        eta: the scale at zero magnitude, > 0; ignored by "plain".
        need_X: whether the input of the layer needs a gradient.
    """
    b = in_dtype(B, G.dtype)
    if gradient == "row":
        s = row_scale(A, B, eta)  # (n1, 1), float32 or wider
        sB = in_dtype(s * B, G.dtype)
        dB = matmul.inner(G, H).mul_(in_dtype(s if c == 1 else c * s, G.dtype))
        if need_X:  # G [diag(s) B | B]: the two uses of B in one product of width 2r
            P_A, P_X = matmul.linear(G, torch.cat([sB, b], dim=1).mT).chunk(2, dim=1)
        else:
            P_A, P_X = matmul.linear(G, sB.mT), None
    else:
        GS = G if gradient == "plain" else G * _entry_scale(H, b, c, eta)
        dB = matmul.inner(GS, H)
        if c != 1:
            dB = c * dB
        P_A = matmul.linear(GS, b.mT)
        P_X = None if not need_X else P_A if GS is G else matmul.linear(G, b.mT)
    if c != 1:
        P_A, P_X = c * P_A, None if P_X is None else c * P_X
    return LowRankGrads(dB, P_A, P_X)


def _entry_scale(H: Tensor, B: Tensor, c: float, eta: float) -> Tensor:
    """scale(|f|) entry by entry: (N, n1) in the dtype of H, computed in float32 or wider."""
    f = c * (H @ B.mT).to(torch.promote_types(H.dtype, torch.float32))
    return scale(f.abs(), eta).to(H.dtype)
