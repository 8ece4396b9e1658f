"""Which modules a run adapts: names are checked before anything is built."""

from __future__ import annotations

import re

from peft.tuners.lora.layer import LoraLayer
from torch import nn

from ..errors import ConfigError, did_you_mean

ALL_LINEAR = "all-linear"


def check_targets(model: nn.Module, targets: str | list[str]) -> None:
    """Raise if a name in `targets` matches no module of `model`. PEFT itself only notices if none of the names matches.

    Args:
        model: before it gets an adapter.
        targets: names (a module's full name, or the end of it), a regular expression, or "all-linear".

    Raises:
        ConfigError: with the module names closest in spelling.
    """
    if targets == ALL_LINEAR:
        return
    names = [name for name, _ in model.named_modules() if name]
    leaves = sorted({name.rpartition(".")[2] for name, m in model.named_modules() if name and not list(m.children())})
    if isinstance(targets, str):
        try:
            matches = any(re.fullmatch(targets, name) for name in names)
        except re.error as error:
            raise ConfigError(
                f"target_modules={targets!r} is not a valid regular expression: {error}", remedy="separate names with commas"
            ) from None
        if not matches:
            raise ConfigError(
                f"target_modules={targets!r} matches no module", remedy=did_you_mean(targets.rpartition(".")[2], leaves)
            )
        return
    for target in targets:
        if not any(name == target or name.endswith("." + target) for name in names):
            raise ConfigError(
                f"target module {target!r} does not exist in {type(model).__name__}", remedy=did_you_mean(target, leaves)
            )


def adapted_modules(model: nn.Module) -> list[str]:
    """Names of the modules with a LoRA adapter, in the order of the model."""
    return [name for name, module in model.named_modules() if isinstance(module, LoraLayer)]
