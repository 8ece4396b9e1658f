"""What `adapter_config.json` holds: the keys that every reader of LoRA needs, and those that are not at their default.

PEFT writes every field of its own version. Older versions of PEFT, and programs that load the file with one, refuse or ignore
fields that they do not know, even where the value is the default.
"""

from __future__ import annotations

from typing import Any

from peft import LoraConfig

EVERY_READER = frozenset(
    [
        *("peft_type", "task_type", "base_model_name_or_path", "inference_mode", "r", "lora_alpha", "target_modules"),
        *("lora_dropout", "bias", "fan_in_fan_out", "modules_to_save"),
    ]
)
"""Written whatever their value: PEFT has them since its first versions, and other programs read them without a default."""


class StockConfig(LoraConfig):
    """PEFT's `LoraConfig`; only the file that it writes is another (`shortened`)."""

    def to_dict(self) -> dict[str, Any]:
        """The content of `adapter_config.json`."""
        return shortened(super().to_dict())


def shortened(content: dict[str, Any]) -> dict[str, Any]:
    """The content of an `adapter_config.json` without the keys at their default and the version of PEFT.

    PEFT loads an equal configuration from it. Sets become sorted lists: a set has no order, and two equal runs must write
    equal files.

    >>> sorted(shortened({"r": 8, "use_dora": True, "lora_bias": False, "target_modules": {"v_proj", "q_proj"}}).items())
    [('r', 8), ('target_modules', ['q_proj', 'v_proj']), ('use_dora', True)]
    """
    default = LoraConfig().to_dict()
    return {
        key: sorted(value) if isinstance(value, set) else value
        for key, value in content.items()
        if key in EVERY_READER or (key != "peft_version" and (key not in default or value != default[key]))
    }
