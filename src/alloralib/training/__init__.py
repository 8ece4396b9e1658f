"""From a run configuration to a trained adapter and its record."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import RunConfig
    from .run import train

__all__ = ["RunConfig", "train"]


def __getattr__(name: str) -> Any:
    """`RunConfig` needs no torch, and `train` does: each is imported when it is used."""
    if name not in __all__:
        raise AttributeError(f"module 'alloralib.training' has no attribute {name!r}")
    return getattr(importlib.import_module("alloralib.training." + {"RunConfig": "config", "train": "run"}[name]), name)
