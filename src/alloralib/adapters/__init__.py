"""The rule inside PEFT, and the only place that touches `peft.tuners`.

Importing any module of this package installs the hooks of `peft_hooks.py` in PEFT.
"""

from ..ops.family import METHODS
from ..ops.fast_paths import fast_paths
from . import peft_hooks as peft_hooks
from .config import AlloraConfig, VariantConfig, load_config
from .dispatch import enable_allora
from .methods import make_config, optimizer_groups

__all__ = [
    "METHODS", "AlloraConfig", "VariantConfig", "enable_allora", "fast_paths", "load_config", "make_config", "optimizer_groups",
]  # fmt: skip
