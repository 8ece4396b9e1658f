"""`torch.autograd.Function`, typed: torch's own annotations lose the types on the way."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Backward = TypeVar("Backward", bound=Callable[..., Any])


def once(backward: Backward) -> Backward:
    """Mark a backward pass that must not be differentiated again: it raises instead of giving a wrong number."""
    return cast(Backward, once_differentiable(backward))


def apply(function: type[torch.autograd.Function], *args: Any) -> Tensor:
    """`function.apply(*args)`, for functions with one output."""
    return cast(Tensor, function.apply(*args))


def apply_many(function: type[torch.autograd.Function], *args: Any) -> tuple[Tensor, ...]:
    """`function.apply(*args)`, for functions with several outputs."""
    return cast("tuple[Tensor, ...]", function.apply(*args))
