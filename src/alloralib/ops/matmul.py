"""The large matrix products inside an autograd node: float32 on CPUs by oneDNN where it beats torch's default.

On CPUs torch gives float32 products to the BLAS it was built with. In the wheels on PyPI that is MKL, which uses its AVX2
kernels on processors it does not know, such as AMD's. oneDNN compiles kernels for the processor it runs on. With AVX-512 it
is up to twice as fast at any product above a minimum size. With AVX2 only it gains where the weight is large, above all at
the logits of a vocabulary, and is equal or slower at smaller weights, at narrow products, and in the backward pass of a layer
that narrows (a transposed weight whose output is wider than its input). benchmarks/cpu.py measures all of this.

Instruction set and shape decide, never a trial run, so the same run on the same machine gives the same bits. torch already
uses oneDNN for bfloat16, and other devices have one library only.

Foreign private API used here: `torch.ops.mkldnn._linear_pointwise`, the operator that `torch.compile` puts in the place of
`nn.Linear` on CPUs.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .fast_paths import current

LEAST_PRODUCTS = 2**23
"""Multiplications in a product from which oneDNN is worth its call, which costs more than torch's default."""
WIDEST_INNER = 128
"""Width of the narrower factor up to which oneDNN computes a sum over tokens (both factors transposed). With AVX-512 a training
step took 3.5 times as long as with torch's default at r = 256, and half as long at r = 128."""
LARGE = 2**19
"""Entries of a weight from which oneDNN is mostly faster, and never slower, on both kinds of processor that were measured."""
LEAST_TRANSPOSED = 2**10
"""Width of the output from which that also holds for a transposed weight (a layer's backward pass)."""


@functools.cache
def by_default() -> bool:
    """Whether oneDNN is the faster library on this processor for any product above the minimum size."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


def linear(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """rows @ weight^T + bias. Not differentiable: for use inside an autograd node.

    Args:
        rows: (N, n2), floating.
        weight: (n1, n2) with any strides, of the same dtype.
        bias: (n1,) or None.

    Returns:
        (N, n1).
    """
    if _uses_onednn(rows, weight.shape[0], weight):
        return _onednn_linear(rows, weight, bias)
    return F.linear(rows, weight, bias)


def add_linear_(total: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
    """total += rows @ weight^T in place. Not differentiable.

    Args:
        total: (N, n1), changed and returned.
        rows: (N, n2), of the same dtype.
        weight: (n1, n2) with any strides, of the same dtype.
    """
    if _uses_onednn(rows, weight.shape[0], weight):
        return total.add_(_onednn_linear(rows, weight))
    return total.addmm_(rows, weight.mT)


def inner(left: Tensor, right: Tensor) -> Tensor:
    """left^T @ right, a sum over tokens. Not differentiable: for use inside an autograd node.

    Args:
        left: (N, m), floating.
        right: (N, k), of the same dtype.

    Returns:
        (m, k), contiguous.
    """
    m, k = left.shape[1], right.shape[1]
    if min(m, k) > WIDEST_INNER or not _uses_onednn(right, m):
        return torch.mm(left.mT, right)
    # oneDNN is fast where the narrow factor is the one it takes as its rows.
    return _onednn_linear(left.mT, right.mT) if m <= k else _onednn_linear(right.mT, left.mT).mT.contiguous()


def _uses_onednn(rows: Tensor, width: int, weight: Tensor | None = None) -> bool:
    """Whether oneDNN computes a product of `rows` with a factor `width` wide; `weight` is that factor if it is a weight."""
    wanted = current().onednn
    if wanted is None:
        wanted = by_default() or (weight is not None and _is_large(weight))
    return (
        wanted
        and rows.dtype == torch.float32
        and rows.device.type == "cpu"
        and rows.numel() * width >= LEAST_PRODUCTS
        and torch.backends.mkldnn.is_available()
    )


def _is_large(weight: Tensor) -> bool:
    n1, n2 = weight.shape
    return n1 * n2 >= LARGE and (LEAST_TRANSPOSED <= n1 <= n2 or weight.is_contiguous())


def _onednn_linear(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    operator: Any = torch.ops.mkldnn._linear_pointwise
    return operator(rows, weight, bias, "none", [], "")
