"""The rule inside PEFT; the only place that touches `peft.tuners`."""

from .attach import adopt
from .config import AlloraConfig, FamilyConfig
from .files import load_config
from .methods import METHODS, peft_config
from .siblings import fast_paths

__all__ = ["METHODS", "AlloraConfig", "FamilyConfig", "adopt", "fast_paths", "load_config", "peft_config"]
