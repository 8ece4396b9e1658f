"""Test cases: a fast operation, its slow twin, and named random inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from alloralib.ops import reference
from alloralib.ops.conv import lora_conv
from alloralib.ops.delta_weight import lora_delta_weight
from alloralib.ops.embedding import lora_embedding
from alloralib.ops.linear import lora_linear

Named = dict[str, Tensor]


@dataclass
class Case:
    name: str
    fast: Callable[..., Tensor]
    slow: Callable[..., Tensor]
    tensors: Named  # differentiable inputs by name, float64
    rest: dict[str, Any]  # everything else

    def __str__(self) -> str:
        return self.name


def _r(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear_case(lead: tuple[int, ...], n1: int, n2: int, r: int, *, base: bool = True, transposed: bool = False) -> Case:
    tensors = {"x": _r(0, *lead, n2), "A": _r(1, r, n2), "B": _r(2, n1, r)}
    rest: dict[str, Any] = {"weight": None, "bias": None, "fan_in_fan_out": transposed}
    if base:
        tensors |= {"weight": _r(3, n2, n1) if transposed else _r(3, n1, n2), "bias": _r(4, n1)}
        rest = {"fan_in_fan_out": transposed}
    name = f"linear-{'x'.join(map(str, lead))}-{n1}x{n2}-r{r}{'-branch' * (not base)}{'-conv1d' * transposed}"
    return Case(name, lora_linear, reference.linear, tensors, rest)


def embedding_case(lead: tuple[int, ...], d: int, vocabulary: int, r: int, padding_idx: int | None = None) -> Case:
    tokens = torch.randint(0, vocabulary, lead, generator=torch.Generator().manual_seed(5))
    return Case(
        f"embedding-{'x'.join(map(str, lead))}-{d}x{vocabulary}-r{r}-pad{padding_idx}",
        lora_embedding,
        reference.embedding,
        {"A": _r(1, r, vocabulary), "B": _r(2, d, r)},
        {"tokens": tokens, "padding_idx": padding_idx},
    )


def conv_case(dims: int, *, n1: int, n2: int, r: int, kernel: int, stride: int, padding: int, groups: int = 1) -> Case:
    size = (9, 7, 5)[:dims]
    return Case(
        f"conv{dims}d-{n1}x{n2}-r{r}-k{kernel}-s{stride}-p{padding}-g{groups}",
        lora_conv,
        reference.conv,
        {"x": _r(0, 2, n2, *size), "A": _r(1, r, n2, *(kernel,) * dims), "B": _r(2, n1, r // groups, *(1,) * dims)},
        {"stride": (stride,) * dims, "padding": (padding,) * dims, "groups": groups},
    )


LINEAR = [
    linear_case((7,), 5, 3, 2),
    linear_case((1, 1), 1023, 1, 1),
    linear_case((3, 7), 256, 33, 8),
    linear_case((2, 3, 5), 17, 31, 4),
    linear_case((4,), 3, 5, 9),  # r beyond both sides
    linear_case((2, 6), 12, 8, 4, base=False),
    linear_case((2, 6), 12, 8, 4, transposed=True),
]
CONV = [
    conv_case(1, n1=6, n2=4, r=2, kernel=3, stride=1, padding=1),
    conv_case(2, n1=5, n2=3, r=4, kernel=3, stride=2, padding=0),
    conv_case(2, n1=8, n2=4, r=4, kernel=1, stride=1, padding=0, groups=2),
    conv_case(3, n1=4, n2=2, r=3, kernel=2, stride=1, padding=1),
]
EMBEDDING = [embedding_case((6,), 5, 11, 3), embedding_case((2, 9), 8, 4, 2, padding_idx=1)]
DELTA = [
    Case("delta-2d", lora_delta_weight, reference.delta_weight, {"A": _r(1, 3, 7), "B": _r(2, 5, 3)}, {}),
    Case("delta-experts", lora_delta_weight, reference.delta_weight, {"A": _r(1, 4, 2, 7), "B": _r(2, 4, 5, 2)}, {}),
]
BRANCHES = LINEAR + CONV + EMBEDDING
ALL = BRANCHES + DELTA


def upstream(y: Tensor) -> Tensor:
    """The gradient at the output: the same in every call, and exact in every tested dtype."""
    g = torch.randn(y.shape, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    return g.to(torch.bfloat16).to(y.dtype)


def run(function: Callable[..., Tensor], case: Case, dtype: torch.dtype, **settings: Any) -> tuple[Tensor, Named]:
    """Output and gradients by name, for the same gradient at the output in every call."""
    leaves = {k: v.to(dtype).clone().requires_grad_() for k, v in case.tensors.items()}
    y = function(**leaves, **case.rest, **settings)
    y.backward(upstream(y))
    return y.detach(), {k: v.grad for k, v in leaves.items() if v.grad is not None}
