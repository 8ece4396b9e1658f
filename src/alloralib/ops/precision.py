"""The dtype of the products inside an autograd node: autocast decides it once, on entry, and is off inside."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

_NOTHING = nullcontext()


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype that products with x are computed in: autocast's where it is on for x's device, else x's own."""
    device = x.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype


def in_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """`tensor.to(dtype)`, without the call where nothing changes: layers can be small, and a node would make many."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def without_autocast(device: str) -> AbstractContextManager[object]:
    """A context with autocast off on a kind of device; free of cost where it is off already."""
    return torch.autocast(device_type=device, enabled=False) if torch.is_autocast_enabled(device) else _NOTHING
