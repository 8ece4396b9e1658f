"""What stands between the linear layers of a decoder, an autograd node each: RMS norm, rotary embedding, gate.

As models write them they are five to ten operations each, every one of which reads and writes the whole tensor in both
directions. Here a pass over memory that can be spared is spared, and what can be had again from what is kept anyway is not
kept. Nothing of it is trained: weight, cosines and sines get no gradient. The slow twins are transformers' own
(`LlamaRMSNorm`, `apply_rotary_pos_emb`, `LlamaMLP`). Liger's kernels, which transformers can put in, do the same and need
Triton; these are torch's own operations and run on any device.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._function import apply, once

_linalg: Any = torch.linalg  # untyped, both
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
    """weight * x / sqrt(mean(x^2) + eps), normed in float32 as Llama does (arXiv:1910.07467, equation 4).

    Args:
        x: (..., n), floating.
        weight: (n,), frozen.
        eps: added to the mean of the squares.

    Returns:
        (..., n), in the dtype that `weight * x` has. Second derivatives raise.
    """
    return apply(_RMSNorm, x, weight, eps)


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin, 1)

    @staticmethod
    @once
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        half = sin.shape[-1] // 2
        swapped = torch.cat([sin[..., half:], sin[..., :half]], dim=-1)  # the transpose takes the other half's sine
        return _rotated(grad_outputs[0], cos, swapped, -1), None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
    half = x.shape[-1] // 2
    out = x * cos
    out[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-sign)
    out[..., half:].addcmul_(x[..., :half], sin[..., half:], value=sign)
    return out


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x * cos + [-x_2, x_1] * sin, where x_1 and x_2 are the halves of the last dimension (arXiv:2104.09864, equation 34,
    with a head's pairs half a head apart, as transformers has them).

    Args:
        x: (..., d), d even.
        cos, sin: what multiplies with x, of the same dtype.

    Returns:
        of x's shape and dtype. Second derivatives raise.
    """
    return apply(_Rotary, x, cos, sin)


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
    """silu(gate) * up, the SwiGLU of arXiv:2002.05202, section 2; keeps the two and makes silu(gate) again.

    Args:
        gate, up: of one shape and dtype.

    Returns:
        of that shape and dtype. Second derivatives raise.
    """
    return apply(_Gated, gate, up)
