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
    cB = in_dtype(B if c == 1 else c * B, G.dtype)
    if gradient == "row":
        cs = row_scale(A, B, eta) if c == 1 else c * row_scale(A, B, eta)  # c diag(s): (n1, 1), float32 or wider
        csB = in_dtype(cs * B, G.dtype)
        dB = matmul.inner(G, H).mul_(in_dtype(cs, G.dtype))
        if not need_X:
            return LowRankGrads(dB, matmul.linear(G, csB.mT), None)
        P = matmul.linear(G, torch.cat([csB, cB], dim=1).mT)  # c G [diag(s) B | B]: one product for the two uses of B
        return LowRankGrads(dB, *P.chunk(2, dim=1))
    scaled = G  # G S
    if gradient == "entry":
        f = (H @ cB.mT).to(torch.promote_types(G.dtype, torch.float32))
        scaled = G * in_dtype(scale(f.abs(), eta), G.dtype)
    dB = matmul.inner(scaled, H)
    P_A = matmul.linear(scaled, cB.mT)
    P_X = None if not need_X else P_A if scaled is G else matmul.linear(G, cB.mT)
    return LowRankGrads(dB if c == 1 else c * dB, P_A, P_X)
