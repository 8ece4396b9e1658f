"""ALLoRA: LoRA fine-tuning with an adaptive learning rate, inside Hugging Face PEFT (arXiv:2410.09692).

    from alloralib import AlloraConfig
    model = peft.get_peft_model(model, AlloraConfig(r=16, eta=2.0, target_modules="all-linear"))

Names are imported when they are first used, so `import alloralib` costs milliseconds and loads no torch.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

__version__ = "0.3.0"

if TYPE_CHECKING:
    from .adapters import (
        METHODS,
        AlloraConfig,
        VariantConfig,
        enable_allora,
        fast_paths,
        load_config,
        make_config,
        optimizer_groups,
    )
    from .adapters.elementwise import fuse_elementwise
    from .errors import AlloraError
    from .ops.scale import row_norms, scale
    from .training import RunConfig, train
    from .training.open_run import open_run
    from .training.opened import OpenRun

_WHERE = {
    "AlloraConfig": "adapters",
    "AlloraError": "errors",
    "VariantConfig": "adapters",
    "METHODS": "adapters",
    "OpenRun": "training.opened",
    "RunConfig": "training",
    "enable_allora": "adapters",
    "fast_paths": "adapters",
    "fuse_elementwise": "adapters.elementwise",
    "load_config": "adapters",
    "make_config": "adapters",
    "open_run": "training.open_run",
    "optimizer_groups": "adapters",
    "row_norms": "ops.scale",
    "scale": "ops.scale",
    "train": "training",
}
__all__ = [
    "METHODS",
    "AlloraConfig",
    "AlloraError",
    "VariantConfig",
    "OpenRun",
    "RunConfig",
    "__version__",
    "enable_allora",
    "fast_paths",
    "fuse_elementwise",
    "load_config",
    "make_config",
    "open_run",
    "optimizer_groups",
    "row_norms",
    "scale",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'alloralib' has no attribute {name!r}")
    return getattr(importlib.import_module(f"alloralib.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)


# If PEFT is already loaded, install our hooks in it now (adapters/peft_hooks.py), so that it recognizes saved ALLoRA adapters.
# Otherwise the first use of a name from `alloralib.adapters` does.
if "peft" in sys.modules:
    importlib.import_module("alloralib.adapters")
