"""What `adapter_config.json` holds: the keys that readers require, and those that are not at their default.

PEFT writes every field of its own version. Older versions of PEFT, and programs that load the file with one, refuse or ignore
fields that they do not know, even where the value is the default.
"""

from __future__ import annotations

from typing import Any

from peft import LoraConfig

REQUIRED = frozenset(["peft_type", "r", "lora_alpha", "target_modules"])
"""Written whatever their value: PEFT reads the first without a default, vLLM the others, llama.cpp's converter `lora_alpha`."""


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
        if key in REQUIRED or (key != "peft_version" and (key not in default or value != default[key]))
    }
