"""`torch.autograd.Function` with static types, which torch's own annotations lose."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Backward = TypeVar("Backward", bound=Callable[..., Any])


def once(backward: Backward) -> Backward:
    """Mark a backward pass that cannot be differentiated: a second derivative raises instead of being wrong."""
    return cast(Backward, once_differentiable(backward))


def apply(function: type[torch.autograd.Function], *args: Any) -> Tensor:
    """`function.apply(*args)`, for functions with one output."""
    return cast(Tensor, function.apply(*args))
