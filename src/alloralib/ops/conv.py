"""ALLoRA on a convolution: f(x) = c B * (A * x); A has the layer's kernel and r channels, B has kernel size 1.

Rows of BA are output channels: A is flattened to r x (n2 k1 k2 ...), B to n1 x r. In a grouped convolution B has r/g columns
and stands for a block-diagonal n1 x r matrix. Every position of the output is one row of G, so the backward pass at B and at
the bottleneck is that of `lowrank.py`. The slow twin is `reference.conv`.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from ._function import apply, once
from .family import GradientAdaptor
from .lowrank import lowrank_backward
from .precision import compute_dtype, without_autocast


def expand_groups(B: Tensor, groups: int) -> Tensor:
    """The (n1, r) matrix that the weight (n1, r/g, 1, ...) of B stands for; block diagonal if grouped."""
    flat = B.flatten(1)
    if groups == 1:
        return flat
    return cast(Tensor, torch.block_diag(*flat.chunk(groups, dim=0)))  # pyright: ignore[reportUnknownMemberType]


def _collect_groups(full: Tensor, groups: int) -> Tensor:
    """The gradient of `expand_groups`: (n1, r) -> (n1, r/g), the diagonal blocks."""
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
        ctx: Any, x: Tensor, A: Tensor, B: Tensor, stride: tuple[int, ...], padding: tuple[int, ...],
        groups: int, gradient: GradientAdaptor, eta: float, c: float,
    ) -> Tensor:  # fmt: skip
        dims = x.dim() - 2
        ctx.geometry = (stride, padding, (1,) * dims, False, (0,) * dims, 1)  # of A, which is not grouped
        ctx.groups, ctx.gradient, ctx.eta, ctx.c = groups, gradient, eta, c
        ctx.dtype = dtype = compute_dtype(x)
        with without_autocast(x.device.type):
            bottleneck = torch.convolution(x.to(dtype), A.to(dtype), None, *ctx.geometry)
            H = _rows(bottleneck)
            f = (H if c == 1 else c * H) @ expand_groups(B, groups).to(dtype).mT
        ctx.save_for_backward(x, A, B, H)
        return _images(f, bottleneck)

    @staticmethod
    @once
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, A, B, H = ctx.saved_tensors
        need_X, need_A, need_B = ctx.needs_input_grad[:3]
        dX = dA = dB = None
        with without_autocast(x.device.type):
            grad = grad_outputs[0].to(ctx.dtype)
            low = lowrank_backward(
                _rows(grad), H, A.flatten(1), expand_groups(B, ctx.groups),
                c=ctx.c, gradient=ctx.gradient, eta=ctx.eta, need_X=need_X,
            )  # fmt: skip

            def through_A(P: Tensor, mask: list[bool]) -> tuple[Tensor, ...]:
                return torch.ops.aten.convolution_backward(
                    _images(P, grad).contiguous(), x.to(ctx.dtype), A.to(ctx.dtype), None, *ctx.geometry, mask
                )

            if need_X:
                assert low.P_X is not None
                dX = through_A(low.P_X, [True, False, False])[0].to(x.dtype)
            if need_A:
                dA = through_A(low.P_A, [False, True, False])[1].to(A.dtype)
            if need_B:
                dB = _collect_groups(low.dB, ctx.groups).view(B.shape).to(B.dtype)
        return dX, dA, dB, None, None, None, None, None, None


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
        padding: of the frozen layer, likewise; padded with zeros.
        groups: of the frozen layer; r is a multiple of it.
        gradient: "row" is ALLoRA, "entry" ALLoRA-OD, "plain" LoRA.
        eta: the scale where a row of BA is zero, > 0.
        scaling: constant factor c on the branch.

    Returns:
        (batch, n1, ...) in x's dtype, or autocast's where that is on. Second derivatives raise a RuntimeError.
    """
    return apply(_LoraConv, x, A, B, stride, padding, groups, gradient, eta, scaling)
