"""ALLoRA on the matrix BA itself, for layers that add it to the weight before they use it (stacked MoE experts).

    D  = c B A
    dB = c diag(s) (dL/dD) A^T
    dA = c B^T diag(s) (dL/dD)

It is the same rule: where D is used as Y = X D^T, dL/dD = G^T X. The slow twin is `reference.delta_weight`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._function import apply, once
from .precision import without_autocast
from .scale import row_scale


class _LoraDeltaWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, A: Tensor, B: Tensor, eta: float, c: float) -> Tensor:
        ctx.eta, ctx.c = eta, c
        ctx.save_for_backward(A, B)
        with without_autocast(A.device.type):
            return c * (B @ A)

    @staticmethod
    @once
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        A, B = ctx.saved_tensors
        with without_autocast(A.device.type):
            s = row_scale(A, B, ctx.eta)
            sD = (grad_outputs[0] * (ctx.c * s)).to(A.dtype)  # c diag(s) dL/dD
            return B.mT @ sD, sD @ A.mT, None, None


def lora_delta_weight(A: Tensor, B: Tensor, *, eta: float, scaling: float = 1.0) -> Tensor:
    """c B A, with ALLoRA's gradients for A and B.

    Args:
        A: (..., r, n2); leading dimensions are experts.
        B: (..., n1, r), the dtype of A.
        eta: the scale where a row of BA is zero, > 0.
        scaling: constant factor c.

    Returns:
        (..., n1, n2) in the dtype of A. Second derivatives raise a RuntimeError.
    """
    return apply(_LoraDeltaWeight, A, B, eta, scaling)
