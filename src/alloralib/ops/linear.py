"""The fused linear layers: frozen base and low-rank branch in one autograd node, for one layer or for several on one input.

    Y_k = X W_k^T + b_k + c_k (X A_k^T) B_k^T

    H        = X [A_1; A_2; ...]^T               N x (r_1 + r_2 + ...), one product; kept for the backward pass
    P_k      = G_k [diag(s_k) B_k | B_k]         N x 2 r_k, one product for the two uses of B_k
    dL/dB_k  = c_k diag(s_k) G_k^T H_k
    dL/dA    = [c_k P_k,left]^T X                one product for all A_k, a slice of rows for each
    dL/dX    = sum_k G_k W_k + [c_k P_k,right] [A_1; A_2; ...]    added in place; skipped where X wants none

Derivation: section 4.2 of arXiv:2410.09692 and `lowrank.py`. Layers that read the same input (queries, keys and values;
gate and up) share the products with X, which are the narrow ones, and the sum over k needs no temporaries. The slow twin
is `reference.linear`, layer by layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import products
from ._function import apply_many, once
from .adaptors import GradientAdaptor
from .ahead import Coming, announce
from .lowrank import lowrank_backward
from .precision import compute_dtype, in_dtype, without_autocast


class LinearLayer(NamedTuple):
    """One of the layers that `lora_linears` computes.

    Attributes:
        weight: (n1, n2), or (n2, n1) where `fan_in_fan_out` (GPT-2's Conv1D), or None for the branch alone.
        bias: (n1,) or None.
        A: (r, n2).
        B: (n1, r).
        eta: the scale where a row of BA is zero, > 0; ignored by "plain".
        scaling: constant factor c on the branch (1 for every ALLoRA adapter).
    """

    weight: Tensor | None
    bias: Tensor | None
    A: Tensor
    B: Tensor
    eta: float = 2.0
    scaling: float = 1.0


class _LoraLinears(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gradient: GradientAdaptor,
        numbers: tuple[tuple[float, float], ...],
        fan_in_fan_out: bool,
        coming: tuple[Coming | None, ...],
        *tensors: Tensor | None,
    ) -> tuple[Tensor, ...]:
        dtype = compute_dtype(x)
        layers = _layers(tensors, numbers)
        ctx.gradient, ctx.numbers, ctx.fan_in_fan_out, ctx.dtype = gradient, numbers, fan_in_fan_out, dtype
        ctx.coming = coming
        ctx.bias_dtypes = [None if layer.bias is None else layer.bias.dtype for layer in layers]
        outputs: list[Tensor] = []
        with without_autocast(x.device.type):
            rows = in_dtype(x.reshape(-1, x.shape[-1]), dtype)
            hidden = products.linear(rows, _stacked(layers, dtype))
            for layer, h in zip(layers, _split(hidden, layers, 1), strict=True):
                if layer.weight is None:
                    y = h @ in_dtype(layer.B, dtype).mT
                    if layer.scaling != 1:
                        y = y * layer.scaling
                else:
                    w = in_dtype(layer.weight, dtype)
                    bias = None if layer.bias is None else in_dtype(layer.bias, dtype)
                    y = products.linear(rows, w.mT if fan_in_fan_out else w, bias)
                    y.addmm_(h, in_dtype(layer.B, dtype).mT, alpha=layer.scaling)
                outputs.append(y.view(*x.shape[:-1], layer.B.shape[0]))
        saved = [t for layer in layers for t in (layer.weight, layer.A, layer.B)]
        ctx.save_for_backward(x, hidden, *saved)
        ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    @once
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        x, hidden, *saved = ctx.saved_tensors
        dtype = ctx.dtype
        tensors = [t for i in range(0, len(saved), 3) for t in (saved[i], None, saved[i + 1], saved[i + 2])]
        layers = _layers(tensors, ctx.numbers)
        need_x, *needs = ctx.needs_input_grad[0], *ctx.needs_input_grad[5:]
        grads: list[Tensor | None] = [None] * len(tensors)
        grad_x: Tensor | None = None
        with without_autocast(x.device.type):
            rows = in_dtype(x.reshape(-1, x.shape[-1]), dtype)
            for_A: list[Tensor] = []
            for_input: list[Tensor] = []
            grad_rows: Tensor | None = None
            for k, (layer, h, grad) in enumerate(zip(layers, _split(hidden, layers, 1), grad_outputs, strict=True)):
                r = layer.A.shape[0]
                if grad is None:  # an output that nothing was made of
                    for_A.append(rows.new_zeros(rows.shape[0], r))
                    for_input.append(for_A[-1])
                    continue
                need_w, need_b, _, need_B = needs[4 * k : 4 * k + 4]
                grad = in_dtype(grad.reshape(-1, layer.B.shape[0]), dtype)
                low = lowrank_backward(
                    grad, h, layer.A, layer.B,
                    scaling=layer.scaling, gradient=ctx.gradient, eta=layer.eta, need_input=need_x, coming=ctx.coming[k],
                )  # fmt: skip
                for_A.append(low.for_A)
                if need_x:
                    assert low.for_input is not None
                    for_input.append(low.for_input)
                    if layer.weight is not None:
                        w = in_dtype(layer.weight, dtype)
                        back = w if ctx.fan_in_fan_out else w.mT
                        if grad_rows is None:
                            grad_rows = products.linear(grad, back)
                        else:
                            products.add_linear_(grad_rows, grad, back)
                if need_w:
                    assert layer.weight is not None
                    natural = products.inner(rows, grad) if ctx.fan_in_fan_out else products.inner(grad, rows)
                    grads[4 * k] = in_dtype(natural, layer.weight.dtype)
                if need_b:
                    grads[4 * k + 1] = grad.sum(dim=0).to(ctx.bias_dtypes[k])
                if need_B:
                    grads[4 * k + 3] = in_dtype(low.B, layer.B.dtype)
            if need_x:
                stacked = _stacked(layers, dtype)
                both = _joined(for_input, 1)
                grad_rows = both @ stacked if grad_rows is None else grad_rows.addmm_(both, stacked)
                grad_x = in_dtype(grad_rows.view(x.shape), x.dtype)
            if any(needs[2::4]):
                grad_A = products.inner(_joined(for_A, 1), rows)
                for k, part in enumerate(_split(grad_A, layers, 0)):
                    if needs[4 * k + 2]:
                        grads[4 * k + 2] = in_dtype(part, layers[k].A.dtype)
        return grad_x, None, None, None, None, *grads


def _layers(tensors: Sequence[Tensor | None], numbers: tuple[tuple[float, float], ...]) -> list[LinearLayer]:
    layers: list[LinearLayer] = []
    for k, (eta, scaling) in enumerate(numbers):
        weight, bias, A, B = tensors[4 * k : 4 * k + 4]
        assert A is not None
        assert B is not None
        layers.append(LinearLayer(weight, bias, A, B, eta, scaling))
    return layers


def _stacked(layers: list[LinearLayer], dtype: torch.dtype) -> Tensor:
    """All A on top of each other: (sum of ranks, n2)."""
    return _joined([in_dtype(layer.A, dtype) for layer in layers], 0)


def _joined(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=dim)


def _split(stacked: Tensor, layers: list[LinearLayer], dim: int) -> tuple[Tensor, ...]:
    """Each layer's share of what all ranks made together."""
    return (stacked,) if len(layers) == 1 else torch.split_with_sizes(stacked, [layer.A.shape[0] for layer in layers], dim)


def lora_linears(
    x: Tensor, layers: Sequence[LinearLayer], *, gradient: GradientAdaptor = "row", fan_in_fan_out: bool = False
) -> tuple[Tensor, ...]:
    """Linear layers with low-rank branches that read the same input, trained by the rule of section 4.2.

    Args:
        x: (..., n2), floating. Products are taken in its dtype, or in autocast's where that is on; A and B may be
            wider (float32 masters under a bfloat16 model) and get gradients in their own dtype.
        layers: at least one.
        gradient: "row" is ALLoRA, "entry" ALLoRA-OD, "plain" LoRA.
        fan_in_fan_out: whether the weights are stored transposed.

    Returns:
        one (..., n1) per layer, in the compute dtype. Second derivatives raise.
    """
    numbers = tuple((float(layer.eta), float(layer.scaling)) for layer in layers)
    tensors = [t for layer in layers for t in (layer.weight, layer.bias, layer.A, layer.B)]
    coming = tuple(announce(layer.A, layer.B, layer.eta) if gradient == "row" else None for layer in layers)
    return apply_many(_LoraLinears, x, gradient, numbers, fan_in_fan_out, coming, *tensors)


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
    """`lora_linears` for one layer; the arguments are those of `LinearLayer`."""
    layer = LinearLayer(weight, bias, A, B, eta, scaling)
    return lora_linears(x, [layer], gradient=gradient, fan_in_fan_out=fan_in_fan_out)[0]
