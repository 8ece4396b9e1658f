"""The backward pass that all layer types share: from the gradient at f = c B h to B and to the bottleneck h = A x.

Notation: rows of G are tokens. G is N x n1, H = X A^T is N x r, B is n1 x r, c is a constant factor.

    natural   dL/dB = c G^T H                 dL/dH = c G B                  both for A and for x
    row       dL/dB = c diag(s) G^T H         for A: c G diag(s) B           for x: c G B
    entry     dL/dB = c (G*S)^T H             for A: c (G*S) B               for x: c G B

s = scale(||(BA)_i||), S = scale(|f|), both constants of differentiation. Only what feeds A and B is rescaled; the
gradient that travels on to x is LoRA's own (section 4.2).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import products
from .adaptors import GradientAdaptor
from .ahead import Coming
from .held import once_per_step
from .precision import in_dtype
from .scale import scale


class LowRankGrads(NamedTuple):
    """Gradients of one low-rank branch, in the compute dtype; `for_input` is None unless it was asked for."""

    B: Tensor  # (n1, r)
    for_A: Tensor  # (N, r), dL/dH as A sees it
    for_input: Tensor | None  # (N, r), dL/dH as x sees it


def lowrank_backward(
    grad: Tensor,
    hidden: Tensor,
    A: Tensor,
    B: Tensor,
    *,
    scaling: float,
    gradient: GradientAdaptor,
    eta: float,
    need_input: bool,
    coming: Coming | None = None,
) -> LowRankGrads:
    """Gradients at B and at the bottleneck.

    Args:
        grad: G, (N, n1), in the compute dtype.
        hidden: H, (N, r), in the compute dtype.
        A: (r, n2), in its own dtype; only its Gram matrix is read.
        B: (n1, r), in its own dtype.
        scaling: c.
        gradient: which gradient adaptor.
        eta: ignored by "plain".
        need_input: whether the input of the layer wants a gradient.
        coming: what the forward pass has announced of A and B; read by "row".
    """
    b = in_dtype(B, grad.dtype)
    if gradient == "row":
        s = once_per_step(A, B, eta, coming)  # (n1, 1), float32 or wider
        sb = in_dtype(s * B, grad.dtype)
        grad_B = products.inner(grad, hidden).mul_(in_dtype(s if scaling == 1 else scaling * s, grad.dtype))
        if need_input:  # the two uses of B in one product of width 2r
            for_A, for_input = products.linear(grad, torch.cat([sb, b], dim=1).mT).chunk(2, dim=1)
        else:
            for_A, for_input = products.linear(grad, sb.mT), None
    else:
        trained = grad
        if gradient == "entry":
            output = scaling * (hidden @ b.mT).to(torch.promote_types(grad.dtype, torch.float32))
            trained = grad * scale(output.abs(), eta).to(grad.dtype)
        grad_B = products.inner(trained, hidden)
        if scaling != 1:
            grad_B = grad_B * scaling
        for_A = products.linear(trained, b.mT)
        for_input = None
        if need_input:
            for_input = for_A if trained is grad else products.linear(grad, b.mT)
    if scaling != 1:
        for_A = for_A * scaling
        for_input = None if for_input is None else for_input * scaling
    return LowRankGrads(grad_B, for_A, for_input)
