"""The rule on a convolution: f(x) = c B * (A * x), A with the layer's kernel and r channels, B with kernel 1.

Rows of BA are output channels: A is flattened to r x (n2 k1 k2 ...), B to n1 x r. A grouped convolution has a B with
r/g columns, which stands for a block-diagonal n1 x r matrix. Every position of the output is one row of G, so the
backward pass at B and at the bottleneck is that of `lowrank.py`. The slow twin is `reference.conv`.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from ._function import apply, once
from .adaptors import GradientAdaptor
from .lowrank import lowrank_backward
from .precision import compute_dtype, without_autocast


def expand_groups(B: Tensor, groups: int) -> Tensor:
    """The (n1, r) matrix that a kernel-1 convolution weight (n1, r/g, 1, ...) stands for; block diagonal in groups."""
    flat = B.flatten(1)
    if groups == 1:
        return flat
    return cast(Tensor, torch.block_diag(*flat.chunk(groups, dim=0)))  # pyright: ignore[reportUnknownMemberType]


def _collect_groups(full: Tensor, groups: int) -> Tensor:
    """Inverse of `expand_groups` on a gradient: (n1, r) -> (n1, r/g), the diagonal blocks."""
    if groups == 1:
        return full
    rows, cols = full.shape[0] // groups, full.shape[1] // groups
    return torch.cat([full[g * rows : (g + 1) * rows, g * cols : (g + 1) * cols] for g in range(groups)])


def _rows(images: Tensor) -> Tensor:
    """(batch, channels, ...) -> (positions, channels)."""
    return images.movedim(1, -1).reshape(-1, images.shape[1])


def _images(rows: Tensor, like: Tensor) -> Tensor:
    """(positions, channels) -> (batch, channels, ...), the batch and the positions of `like`."""
    return rows.view(like.shape[0], *like.shape[2:], rows.shape[1]).movedim(-1, 1)


class _LoraConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        A: Tensor,
        B: Tensor,
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        groups: int,
        scaling: float,
        gradient: GradientAdaptor,
        eta: float,
    ) -> Tensor:
        dims = x.dim() - 2
        dtype = compute_dtype(x)
        ctx.geometry = (stride, padding, (1,) * dims, False, (0,) * dims, 1)
        ctx.groups, ctx.scaling, ctx.gradient, ctx.eta, ctx.dtype = groups, scaling, gradient, eta, dtype
        with without_autocast(x.device.type):
            bottleneck = torch.convolution(x.to(dtype), A.to(dtype), None, *ctx.geometry)
            hidden = _rows(bottleneck)
            y = hidden @ expand_groups(B, groups).to(dtype).mT
            if scaling != 1:
                y = y * scaling
        ctx.save_for_backward(x, A, B, hidden)
        return _images(y, bottleneck)

    @staticmethod
    @once
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, A, B, hidden = ctx.saved_tensors
        need_x, need_A, need_B = ctx.needs_input_grad[:3]
        grad_x = grad_A = grad_B = None
        with without_autocast(x.device.type):
            grad = grad_outputs[0].to(ctx.dtype)
            full_B = expand_groups(B, ctx.groups)
            low = lowrank_backward(
                _rows(grad), hidden, A.flatten(1), full_B,
                scaling=ctx.scaling, gradient=ctx.gradient, eta=ctx.eta, need_input=need_x,
            )  # fmt: skip

            def through_A(rows: Tensor, mask: list[bool]) -> tuple[Tensor, ...]:
                return torch.ops.aten.convolution_backward(
                    _images(rows, grad).contiguous(), x.to(ctx.dtype), A.to(ctx.dtype), None, *ctx.geometry, mask
                )

            if need_x:
                assert low.for_input is not None
                grad_x = through_A(low.for_input, [True, False, False])[0].to(x.dtype)
            if need_A:
                grad_A = through_A(low.for_A, [False, True, False])[1].to(A.dtype)
            if need_B:
                grad_B = _collect_groups(low.B, ctx.groups).view(B.shape).to(B.dtype)
        return grad_x, grad_A, grad_B, None, None, None, None, None, None


def lora_conv(
    x: Tensor,
    A: Tensor,
    B: Tensor,
    *,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    groups: int = 1,
    gradient: GradientAdaptor = "row",
    eta: float = 2.0,
    scaling: float = 1.0,
) -> Tensor:
    """Low-rank branch of Conv1d, Conv2d or Conv3d, to be added to the frozen convolution's output.

    Args:
        x: (batch, n2, ...), floating, one to three spatial dimensions.
        A: (r, n2, k1, ...): the frozen layer's kernel, r output channels, not grouped.
        B: (n1, r/groups, 1, ...).
        stride: of the frozen layer, one number per spatial dimension.
        padding: likewise, zeros.
        groups: of the frozen layer; r is a multiple of it.
        gradient: "row" is ALLoRA, "entry" ALLoRA-OD, "plain" LoRA.
        eta: the scale where a row of BA is zero, > 0.
        scaling: constant factor c on the branch.

    Returns:
        (batch, n1, ...) in x's dtype (autocast's where it is on). Second derivatives raise.
    """
    return apply(_LoraConv, x, A, B, stride, padding, groups, scaling, gradient, eta)
