"""Everything that importing `alloralib.adapters` changes in PEFT. Checked on PEFT 0.21.2.

1. The registry of configuration classes, `peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING`. Its entry for LoRA looks for
   `allora_config.json` first, so that `PeftModel.from_pretrained(..., is_trainable=True)` continues training with the rule.
   Methods that no LoRA adapter computes (ASF-LoRA) get an entry of their own.
2. `LoraModel._create_and_replace`, through which PEFT adds every adapter to every layer. It refuses an ALLoRA adapter on a
   LoRA layer that a stock `LoraConfig` built. Several of PEFT's layer classes (bitsandbytes, GPTQ, HQQ) would ignore our
   variant and train plain LoRA under ALLoRA's name.

Foreign private API used here: those two names.
"""

from __future__ import annotations

import functools
from typing import Any

from peft import LoraConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.lora import LoraModel
from peft.tuners.lora.layer import LoraLayer
from torch import nn

from ..errors import LayerError
from ..ops.family import METHODS
from .config import load_config
from .layers import AlloraLayer
from .rule import rule_of


class _AnyLora(type):
    """PEFT also asks `isinstance(config, registry["LORA"])` and calls the entry: both behave as with `LoraConfig`."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, LoraConfig)

    def __call__(cls, *args: Any, **kwargs: Any) -> LoraConfig:
        return LoraConfig(*args, **kwargs)


class SavedLoraConfig(LoraConfig, metaclass=_AnyLora):
    """PEFT's entry for saved LoRA adapters."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any) -> LoraConfig:
        """As `load_config`."""
        return load_config(pretrained_model_name_or_path, subfolder=subfolder, **kwargs)


def _register_configs() -> None:
    registry: dict[Any, Any] = PEFT_TYPE_TO_CONFIG_MAPPING
    registry["LORA"] = SavedLoraConfig
    for name, method in METHODS.items():
        if not method.mergeable:
            registry[name.upper()] = SavedLoraConfig


def _check_new_adapters() -> None:
    create_and_replace = LoraModel._create_and_replace  # pyright: ignore[reportPrivateUsage]

    @functools.wraps(create_and_replace)
    def checked(self: LoraModel, lora_config: Any, adapter_name: str, target: nn.Module, *args: Any, **kwargs: Any) -> None:
        if rule_of(lora_config) is not None and isinstance(target, LoraLayer) and not isinstance(target, AlloraLayer):
            raise LayerError(
                "this model's LoRA layers were built by a stock LoraConfig and cannot train ALLoRA",
                where=f"{type(target).__module__}.{type(target).__name__}",
                remedy="call alloralib.enable_allora(model) once before adding the adapter (or add the ALLoRA adapter first)",
            )
        create_and_replace(self, lora_config, adapter_name, target, *args, **kwargs)

    LoraModel._create_and_replace = checked  # pyright: ignore[reportPrivateUsage]


_register_configs()
_check_new_adapters()
