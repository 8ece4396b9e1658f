"""The fused linear layer: frozen base and low-rank branch in one autograd node.

    Y = X W^T + b + c (X A^T) B^T

    H      = X A^T                                                  N x r, kept for the backward pass
    P      = G [diag(s) B | B]                                      N x 2r, one product for the two uses of B
    dL/dB  = c diag(s) G^T H
    dL/dA  = c P_left^T X
    dL/dX  = G W + c P_right A                                      added in place; skipped where X wants none

Derivation: section 4.2 of arXiv:2410.09692 and `lowrank.py`. The slow twin is `reference.linear`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._function import apply, once
from .adaptors import GradientAdaptor
from .lowrank import compute_dtype, lowrank_backward


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        A: Tensor,
        B: Tensor,
        scaling: float,
        gradient: GradientAdaptor,
        eta: float,
        fan_in_fan_out: bool,
    ) -> Tensor:
        dtype = compute_dtype(x)
        ctx.scaling, ctx.gradient, ctx.eta, ctx.fan_in_fan_out = scaling, gradient, eta, fan_in_fan_out
        ctx.dtype, ctx.bias_dtype = dtype, None if bias is None else bias.dtype
        with torch.autocast(device_type=x.device.type, enabled=False):
            rows = x.reshape(-1, x.shape[-1]).to(dtype)
            hidden = rows @ A.to(dtype).mT
            if weight is None:
                y = hidden @ B.to(dtype).mT
                if scaling != 1:
                    y = y * scaling
            else:
                w = weight.to(dtype)
                y = F.linear(rows, w.mT if fan_in_fan_out else w, None if bias is None else bias.to(dtype))
                y.addmm_(hidden, B.to(dtype).mT, alpha=scaling)
        ctx.save_for_backward(x, weight, A, B, hidden)
        return y.view(*x.shape[:-1], B.shape[0])

    @staticmethod
    @once
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, A, B, hidden = ctx.saved_tensors
        need_x, need_w, need_b, need_A, need_B = ctx.needs_input_grad[:5]
        dtype = ctx.dtype
        grad_x = grad_w = grad_b = grad_A = grad_B = None
        with torch.autocast(device_type=x.device.type, enabled=False):
            grad = grad_outputs[0].reshape(-1, B.shape[0]).to(dtype)
            low = lowrank_backward(
                grad, hidden, A, B, scaling=ctx.scaling, gradient=ctx.gradient, eta=ctx.eta, need_input=need_x
            )
            if need_x:
                assert low.for_input is not None
                if weight is None:
                    grad_rows = low.for_input @ A.to(dtype)
                else:
                    w = weight.to(dtype)
                    grad_rows = grad @ (w.mT if ctx.fan_in_fan_out else w)
                    grad_rows.addmm_(low.for_input, A.to(dtype))
                grad_x = grad_rows.view(x.shape).to(x.dtype)
            if need_A or need_w:
                rows = x.reshape(-1, x.shape[-1]).to(dtype)
                if need_A:
                    grad_A = (low.for_A.mT @ rows).to(A.dtype)
                if need_w:
                    assert weight is not None
                    grad_w = (rows.mT @ grad if ctx.fan_in_fan_out else grad.mT @ rows).to(weight.dtype)
            if need_b:
                grad_b = grad.sum(dim=0).to(ctx.bias_dtype)
            if need_B:
                grad_B = low.B.to(B.dtype)
        return grad_x, grad_w, grad_b, grad_A, grad_B, None, None, None, None


def lora_linear(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    A: Tensor,
    B: Tensor,
    *,
    gradient: GradientAdaptor = "row",
    eta: float = 2.0,
    scaling: float = 1.0,
    fan_in_fan_out: bool = False,
) -> Tensor:
    """Frozen linear layer plus low-rank branch, trained by the rule of section 4.2.

    Args:
        x: (..., n2), floating. Products are taken in its dtype, or in autocast's where that is on; A and B may be
            wider (float32 masters under a bfloat16 model) and get gradients in their own dtype.
        weight: (n1, n2), or (n2, n1) where `fan_in_fan_out` (GPT-2's Conv1D), or None for the branch alone.
        bias: (n1,) or None.
        A: (r, n2).
        B: (n1, r).
        gradient: "row" is ALLoRA, "entry" ALLoRA-OD, "natural" LoRA.
        eta: the scale where a row of BA is zero, > 0; ignored by "natural".
        scaling: constant factor c on the branch (1 for every ALLoRA adapter).

    Returns:
        (..., n1) in the compute dtype. Second derivatives raise.
    """
    return apply(_LoraLinear, x, weight, bias, A, B, scaling, gradient, eta, fan_in_fan_out)
