"""The rule inside PEFT; the only place that touches `peft.tuners`."""

from .attach import enable_allora
from .config import AlloraConfig, VariantConfig
from .files import load_config
from .methods import METHODS, make_config
from .siblings import fast_paths

__all__ = ["METHODS", "AlloraConfig", "VariantConfig", "enable_allora", "fast_paths", "load_config", "make_config"]
