"""The rule on the matrix BA itself, for layers that add it to the weight before they use it (stacked MoE experts).

    D      = c B A
    dL/dB  = c diag(s) (dL/dD) A^T
    dL/dA  = c B^T diag(s) (dL/dD)

The same rule: with D in use as Y = X D^T, dL/dD = G^T X. The slow twin is `reference.delta`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._function import apply, once
from .held import once_per_step
from .precision import without_autocast


class _Delta(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, A: Tensor, B: Tensor, scaling: float, eta: float) -> Tensor:
        ctx.scaling, ctx.eta = scaling, eta
        ctx.save_for_backward(A, B)
        with without_autocast(A.device.type):
            return scaling * (B @ A)

    @staticmethod
    @once
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        A, B = ctx.saved_tensors
        with without_autocast(A.device.type):
            s = once_per_step(A, B, ctx.eta)
            grad = (grad_outputs[0] * (ctx.scaling * s)).to(A.dtype)
            return B.mT @ grad, grad @ A.mT, None, None


def lora_delta(A: Tensor, B: Tensor, *, eta: float, scaling: float = 1.0) -> Tensor:
    """c B A with the rule's gradient for A and B.

    Args:
        A: (..., r, n2); leading dimensions are experts.
        B: (..., n1, r), the dtype of A.
        eta: the scale where a row of BA is zero, > 0.
        scaling: constant factor c.

    Returns:
        (..., n1, n2) in the dtype of A. Second derivatives raise.
    """
    return apply(_Delta, A, B, scaling, eta)
