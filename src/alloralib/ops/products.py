"""The larger products inside a node: on a CPU in float32 by oneDNN, which beats torch's default there.

torch hands float32 products on CPUs to the BLAS it was built with (MKL in the wheels of PyPI), which leaves up to a
fifth of the machine unused where it does not know the processor; oneDNN compiles its kernels for the processor it finds
(benchmarks/cpu.py measures both). bfloat16 goes to oneDNN by itself, and other devices have one library only.

Foreign private API used here: `torch.ops.mkldnn._linear_pointwise`, the operator that `torch.compile` itself puts in the
place of `nn.Linear` on CPUs.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST_PRODUCTS = 2**23
"""Multiplications from which oneDNN is worth its call, which takes longer than that of torch's default."""

_enabled = True


def linear(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """rows @ weight^T + bias; not differentiable, for the inside of an autograd node.

    Args:
        rows: (N, n2), floating.
        weight: (n1, n2) with any strides, of the same dtype.
        bias: (n1,) or None.

    Returns:
        (N, n1).
    """
    if _by_onednn(rows, weight.shape[0]):
        operator: Any = torch.ops.mkldnn._linear_pointwise
        return operator(rows, weight, bias, "none", [], "")
    return F.linear(rows, weight, bias)


def inner(left: Tensor, right: Tensor) -> Tensor:
    """left^T @ right: a sum over the tokens; not differentiable, for the inside of an autograd node.

    Args:
        left: (N, m), floating.
        right: (N, k), of the same dtype.

    Returns:
        (m, k), contiguous.
    """
    m, k = left.shape[1], right.shape[1]
    if not _by_onednn(right, m):
        return left.mT @ right
    # oneDNN is fast where the narrow factor is the one it takes for rows
    return linear(left.mT, right.mT) if m <= k else linear(right.mT, left.mT).mT.contiguous()


@contextmanager
def onednn(enabled: bool) -> Generator[None]:
    """Whether oneDNN may be used while this is open."""
    global _enabled
    before, _enabled = _enabled, enabled
    try:
        yield
    finally:
        _enabled = before


def _by_onednn(rows: Tensor, width: int) -> bool:
    """Whether oneDNN takes a product of `rows` with something `width` wide."""
    return (
        not torch.compiler.is_compiling()  # first: the compiler can neither follow what comes below nor has to
        and _enabled
        and rows.dtype == torch.float32
        and rows.device.type == "cpu"
        and rows.numel() * width >= LEAST_PRODUCTS
        and torch.backends.mkldnn.is_available()
    )
