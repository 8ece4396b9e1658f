"""The rule inside PEFT; the only place that touches `peft.tuners`."""

from .attach import adopt
from .config import AlloraConfig, FamilyConfig
from .files import load_config
from .methods import METHODS, peft_config

__all__ = ["METHODS", "AlloraConfig", "FamilyConfig", "adopt", "load_config", "peft_config"]
