"""The frozen operations between the linear layers of a decoder, RMS norm and gate, in one autograd node each.

Written as models write them they are five to ten operations each, and every one reads and writes the whole tensor in the
forward and in the backward pass. These nodes make fewer passes over memory, and recompute in the backward pass what is cheap
to recompute from tensors that are kept anyway. Their weights get no gradient. The slow twins are transformers' own modules
(`LlamaRMSNorm`, `LlamaMLP`). Liger's kernels, which transformers can install, do the same but need Triton; these are torch's
own operations and run on any device.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._function import apply, once

_linalg: Any = torch.linalg  # both are untyped
_aten: Any = torch.ops.aten


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.float()
        n = x.shape[-1]
        norm: Tensor = _linalg.vector_norm(wide, dim=-1, keepdim=True)
        squares = norm.square_().add_(n * eps)
        rstd = squares.rsqrt().mul_(n**0.5)
        ctx.save_for_backward(x, weight, squares, rstd)
        normed = (wide * rstd).to(x.dtype)
        return normed.mul_(weight) if weight.dtype == x.dtype else weight * normed

    @staticmethod
    @once
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        x, weight, squares, rstd = ctx.saved_tensors
        wide = x.float()
        inner = (grad_outputs[0] * weight).float().mul_(rstd)
        along: Tensor = _linalg.vecdot(inner, wide)
        return inner.addcmul_(wide, along.unsqueeze(-1).div_(squares), value=-1).to(x.dtype), None, None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """weight * x / sqrt(mean(x^2) + eps), normalized in float32 as Llama does (arXiv:1910.07467, equation 4).

    Args:
        x: (..., n), floating.
        weight: (n,), frozen.
        eps: added to the mean of the squares.

    Returns:
        (..., n), in the dtype of `weight * x`. Second derivatives raise a RuntimeError.
    """
    return apply(_RMSNorm, x, weight, eps)


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        (grad,) = grad_outputs
        return _aten.silu_backward(grad * up, gate), F.silu(gate).mul_(grad)


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, the SwiGLU of arXiv:2002.05202, section 2. The backward pass recomputes silu(gate).

    Args:
        gate, up: of equal shape and dtype.

    Returns:
        a tensor of that shape and dtype. Second derivatives raise a RuntimeError.
    """
    return apply(_Gated, gate, up)
