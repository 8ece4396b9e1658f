"""The larger products inside a node: on a CPU in float32 by oneDNN where it beats torch's default.

torch hands float32 products on CPUs to the BLAS it was built with (MKL in the wheels of PyPI), which takes the road for AVX2
on processors that it does not know, AMD's; oneDNN compiles its kernels for what it finds. With AVX-512 it is up to twice as
fast at any product of some size. With AVX2 only it gains where the weight is large, at the logits of a vocabulary above all,
and is equal or loses at smaller ones, at narrow products, and on the way back through a layer that narrows (where a transposed
weight makes the output wider than the input): benchmarks/cpu.py measures them all. Instruction set and shape decide and no
trial run does: the same run on the same machine gives the same bits. bfloat16 goes to oneDNN by itself, and other devices have
one library only.

Foreign private API used here: `torch.ops.mkldnn._linear_pointwise`, the operator that `torch.compile` itself puts in the
place of `nn.Linear` on CPUs.
"""

from __future__ import annotations

import functools
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST_PRODUCTS = 2**23
"""Multiplications from which oneDNN is worth its call, which takes longer than that of torch's default."""
WIDEST_INNER = 128
"""Width of the narrower factor up to which oneDNN takes a sum over the tokens, whose factors are both transposed. With AVX-512
a step at r = 256 took 3.5 times as long as by torch's default, and half as long at r = 128."""
LARGE = 2**19
"""Entries of a weight from which oneDNN is mostly faster, and not slower, on both kinds of processor that were measured."""
LEAST_TRANSPOSED = 2**10
"""Width of the output from which that holds for a transposed weight too, which is the way back through a layer."""

_wanted: bool | None = None


@functools.cache
def by_default() -> bool:
    """Whether oneDNN is the faster one on this processor at any product of some size."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


def linear(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """rows @ weight^T + bias; not differentiable, for the inside of an autograd node.

    Args:
        rows: (N, n2), floating.
        weight: (n1, n2) with any strides, of the same dtype.
        bias: (n1,) or None.

    Returns:
        (N, n1).
    """
    if _by_onednn(rows, weight.shape[0], weight):
        return _linear_of_onednn(rows, weight, bias)
    return F.linear(rows, weight, bias)


def add_linear_(total: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
    """total += rows @ weight^T, without a temporary where the library can add; not differentiable.

    Args:
        total: (N, n1), changed and returned.
        rows: (N, n2), of the same dtype.
        weight: (n1, n2) with any strides, of the same dtype.
    """
    if _by_onednn(rows, weight.shape[0], weight):
        return total.add_(_linear_of_onednn(rows, weight))
    return total.addmm_(rows, weight.mT)


def inner(left: Tensor, right: Tensor) -> Tensor:
    """left^T @ right: a sum over the tokens; not differentiable, for the inside of an autograd node.

    Args:
        left: (N, m), floating.
        right: (N, k), of the same dtype.

    Returns:
        (m, k), contiguous.
    """
    m, k = left.shape[1], right.shape[1]
    if min(m, k) > WIDEST_INNER or not _by_onednn(right, m):
        return torch.mm(left.mT, right)
    # oneDNN is fast where the narrow factor is the one it takes for rows
    return _linear_of_onednn(left.mT, right.mT) if m <= k else _linear_of_onednn(right.mT, left.mT).mT.contiguous()


@contextmanager
def onednn(wanted: bool | None) -> Generator[None]:
    """Whether oneDNN is used while this is open; None takes what is faster."""
    global _wanted
    before, _wanted = _wanted, wanted
    try:
        yield
    finally:
        _wanted = before


def _by_onednn(rows: Tensor, width: int, weight: Tensor | None = None) -> bool:
    """Whether oneDNN takes a product of `rows` with something `width` wide, a weight or not."""
    return (
        not torch.compiler.is_compiling()  # first: the compiler can neither follow what comes below nor has to
        and (by_default() or (weight is not None and _large(weight)) if _wanted is None else _wanted)
        and rows.dtype == torch.float32
        and rows.device.type == "cpu"
        and rows.numel() * width >= LEAST_PRODUCTS
        and torch.backends.mkldnn.is_available()
    )


def _large(weight: Tensor) -> bool:
    n1, n2 = weight.shape
    return n1 * n2 >= LARGE and (LEAST_TRANSPOSED <= n1 <= n2 or weight.is_contiguous())


def _linear_of_onednn(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    operator: Any = torch.ops.mkldnn._linear_pointwise
    return operator(rows, weight, bias, "none", [], "")
