"""Which modules a run adapts: checked by name before anything is built."""

from __future__ import annotations

import re

from peft.tuners.lora.layer import LoraLayer
from torch import nn

from ..errors import ConfigError, did_you_mean

ALL_LINEAR = "all-linear"


def check_targets(model: nn.Module, targets: str | list[str]) -> None:
    """Raise where a name in `targets` fits no module of `model`. PEFT itself only notices when none of them fits.

    Args:
        model: before it gets an adapter.
        targets: names (a module's full name, or its end), a regular expression, or "all-linear".

    Raises:
        ConfigError: with the nearest module names.
    """
    if targets == ALL_LINEAR:
        return
    names = [name for name, _ in model.named_modules() if name]
    leaves = sorted({name.rpartition(".")[2] for name, m in model.named_modules() if name and not list(m.children())})
    if isinstance(targets, str):
        try:
            fits = any(re.fullmatch(targets, name) for name in names)
        except re.error as error:
            raise ConfigError(
                f"target_modules={targets!r} is no regular expression: {error}", remedy="separate several names by commas"
            ) from None
        if not fits:
            raise ConfigError(
                f"target_modules={targets!r} fits no module", remedy=did_you_mean(targets.rpartition(".")[2], leaves)
            )
        return
    for target in targets:
        if not any(name == target or name.endswith("." + target) for name in names):
            raise ConfigError(
                f"target module {target!r} does not exist in {type(model).__name__}", remedy=did_you_mean(target, leaves)
            )


def adapted_modules(model: nn.Module) -> list[str]:
    """The names of the modules that hold a LoRA adapter, in the order of the model."""
    return [name for name, module in model.named_modules() if isinstance(module, LoraLayer)]
