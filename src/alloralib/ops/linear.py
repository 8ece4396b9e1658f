"""A linear layer and its low-rank branch in one autograd node.

Forward, with N tokens as the rows of X, a constant factor c (1 for ALLoRA), and B starting at zero:

    H  = X A^T                               N x r; kept for the backward pass
    Y  = X W^T + b + c H B^T                 N x n1

Backward, with G = dL/dY (N x n1) and s_i = 1/sqrt(||(BA)_i|| + 1/eta^2), a constant of differentiation:

    dB = c diag(s) G^T H                     n1 x r
    P  = c G [diag(s) B | B] = [P_A | P_X]   N x 2r, one product for the two uses of B
    dA = P_A^T X                             r x n2; s sits inside the sum over rows of B
    dX = G W + P_X A                         N x n2; LoRA's own gradient

dB, P_A and P_X come from `lowrank.py`, which all layer types and gradient adaptors share. W and b are usually frozen; where
they are trained, dW = G^T X and db = G^T 1. Compared with PEFT's LoRA, which makes four nodes, neither X A^T B^T nor its
gradient is ever a tensor of its own: both are added in place. Source: section 4.2 of arXiv:2410.09692. The slow twin is
`reference.linear`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import matmul
from ._function import apply, once
from .family import GradientAdaptor
from .lowrank import lowrank_backward
from .precision import compute_dtype, in_dtype, without_autocast


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, W: Tensor | None, b: Tensor | None, A: Tensor, B: Tensor,
        gradient: GradientAdaptor, eta: float, c: float, fan_in_fan_out: bool,
    ) -> Tensor:  # fmt: skip
        ctx.gradient, ctx.eta, ctx.c, ctx.fan_in_fan_out = gradient, eta, c, fan_in_fan_out
        ctx.dtype = dtype = compute_dtype(x)
        with without_autocast(x.device.type):
            X = in_dtype(x.reshape(-1, x.shape[-1]), dtype)
            H = matmul.linear(X, in_dtype(A, dtype))
            if W is None:
                y = (H if c == 1 else c * H) @ in_dtype(B, dtype).mT
            else:
                w = in_dtype(W, dtype)
                y = matmul.linear(X, w.mT if fan_in_fan_out else w, None if b is None else in_dtype(b, dtype))
                y.addmm_(H, in_dtype(B, dtype).mT, alpha=c)
        ctx.save_for_backward(x, W, b, A, B, H)
        return y.view(*x.shape[:-1], B.shape[0])

    @staticmethod
    @once
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, W, b, A, B, H = ctx.saved_tensors
        need_X, need_W, need_b, need_A, need_B = ctx.needs_input_grad[:5]
        dX: Tensor | None = None
        dW = db = dA = dB = None
        with without_autocast(x.device.type):
            G = in_dtype(grad_outputs[0].reshape(-1, B.shape[0]), ctx.dtype)
            X = in_dtype(x.reshape(-1, x.shape[-1]), ctx.dtype)
            low = lowrank_backward(G, H, A, B, c=ctx.c, gradient=ctx.gradient, eta=ctx.eta, need_X=need_X)
            if need_B:
                dB = in_dtype(low.dB, B.dtype)
            if need_A:
                dA = in_dtype(matmul.inner(low.P_A, X), A.dtype)
            if need_X:
                assert low.P_X is not None
                a = in_dtype(A, ctx.dtype)
                if W is None:
                    dX = low.P_X @ a
                else:
                    w = in_dtype(W, ctx.dtype)
                    dX = matmul.linear(G, w if ctx.fan_in_fan_out else w.mT).addmm_(low.P_X, a)
                dX = in_dtype(dX.view(x.shape), x.dtype)
            if need_W:
                assert W is not None
                dW = in_dtype(matmul.inner(X, G) if ctx.fan_in_fan_out else matmul.inner(G, X), W.dtype)
            if need_b:
                db = in_dtype(G.sum(dim=0), b.dtype)
        return dX, dW, db, dA, dB, None, None, None, None


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
    """x W^T + b + c x A^T B^T, with the method's gradients for A and B.

    Args:
        x: (..., n2), floating. Products are computed in its dtype, or in autocast's where that is on. The other tensors may
            have another dtype (float32 A and B under a bfloat16 model) and get gradients in their own.
        weight: (n1, n2), or (n2, n1) if `fan_in_fan_out`, or None for the low-rank branch alone.
        bias: (n1,) or None.
        A: (r, n2).
        B: (n1, r).
        gradient: "row" is ALLoRA, "entry" ALLoRA-OD, "plain" LoRA.
        eta: the scale where a row of BA is zero, > 0; ignored by "plain".
        scaling: constant factor c on the branch (1 for every ALLoRA adapter).
        fan_in_fan_out: whether `weight` is stored transposed (GPT-2's Conv1D).

    Returns:
        (..., n1), in the dtype of the products. Second derivatives raise a RuntimeError.
    """
    return apply(_LoraLinear, x, weight, bias, A, B, gradient, float(eta), float(scaling), fan_in_fan_out)
