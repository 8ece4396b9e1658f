"""In which dtype products are taken: autocast decides once, at the edge of a node, and is off inside of it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

_NOTHING = nullcontext()


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype products are taken in: autocast's where it is on for x's device, else x's own."""
    device = x.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype


def in_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """`tensor.to(dtype)`, and no call where it has that dtype: a node makes many, for layers that may be small."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def without_autocast(device: str) -> AbstractContextManager[object]:
    """Autocast switched off on a kind of device; where it is off already, nothing, which takes no time."""
    return torch.autocast(device_type=device, enabled=False) if torch.is_autocast_enabled(device) else _NOTHING
