"""Which modules a run adapts, and which it trains whole: names are checked before anything is built."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from peft.tuners.lora.layer import LoraLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers.pytorch_utils import Conv1D

from ..errors import ConfigError, did_you_mean

ALL_LINEAR = "all-linear"
TEXT_HEADS = ("classifier", "score")
"""What PEFT adds to `modules_to_save` of a text classifier. It takes every module whose name ends in one of them."""


def trained_whole(model: nn.Module, new: Iterable[str], *, text: bool) -> list[str]:
    """The modules of a classifier that are trained and saved whole, and get no adapter (PEFT's `modules_to_save`).

    These are its head, which is everything beside its body, and the modules with parameters that the base's file does not
    have. Were those adapted, or frozen, their random values would be part of the result and not of the adapter.

    Args:
        model: before it gets an adapter.
        new: names of the parameters that the file does not have.
        text: whether PEFT adds `TEXT_HEADS`.

    Returns:
        their full names; none is inside another.

    Raises:
        ConfigError: a new parameter is in no module but the model itself.
    """
    body = getattr(model, "base_model_prefix", "")
    inside = [(name, module) for name, module in model.named_modules() if name]
    found = {name.rpartition(".")[0] for name in new}
    if "" in found:
        names = ", ".join(name for name in new if "." not in name)
        what = f"the base's file has no {names}, and a parameter of the model itself cannot be saved with an adapter"
        raise ConfigError(what, where=type(model).__name__, remedy="use a base whose file has it")
    if isinstance(getattr(model, body, None), nn.Module):
        found |= {name for name, child in model.named_children() if name != body and any(True for _ in child.parameters())}
    else:
        found |= {name for name in TEXT_HEADS if isinstance(getattr(model, name, None), nn.Module)}
    ends = (*found, *TEXT_HEADS) if text else tuple(found)
    found |= {name for name, _ in inside if name.endswith(ends)} if ends else set()
    return [name for name, _ in inside if name in found and not any(name.startswith(other + ".") for other in found)]


def settings_of(
    model: nn.Module, targets: str | list[str], whole: list[str], *, text: bool, unused: Iterable[str] = ()
) -> dict[str, Any]:
    """The settings of a LoRA configuration that adapt `targets` and train `whole` whole.

    PEFT adapts nothing that it trains whole. Older versions of it do, so these settings leave it out of the targets, too.

    Args:
        model, targets: as `check_targets` passed them.
        whole, text: as of `trained_whole`.
        unused: modules that the task does not use, which are not adapted either.
    """
    left_out = [*whole, *unused]
    if not left_out:
        return {}
    settings: dict[str, Any] = {"modules_to_save": [name for name in whole if not (text and name in TEXT_HEADS)] or None}
    if targets == ALL_LINEAR:
        _, output = embeddings_of(model)  # PEFT does not count it among all linear layers
        inside = [(name, m) for name, m in outside(model, left_out) if m is not output]
        return settings | {"target_modules": {name for name, m in inside if isinstance(m, nn.Linear | Conv1D)}}
    kept = {name for name, _ in outside(model, left_out)}
    also = [name for name, _ in model.named_modules() if name not in kept and any(_matches(t, name) for t in _parsed(targets))]
    return settings | {"exclude_modules": also or None}


def outside(model: nn.Module, whole: Iterable[str]) -> list[tuple[str, nn.Module]]:
    """The modules that are neither the model itself nor in one of `whole`."""
    within = [(name, name + ".") for name in whole]
    return [
        (name, module)
        for name, module in model.named_modules()
        if name and not any(name == exact or name.startswith(start) for exact, start in within)
    ]


def check_targets(model: nn.Module, targets: str | list[str], whole: Iterable[str] = ()) -> None:
    """Raise if a name in `targets` matches no module of `model`. PEFT itself only notices if none of the names matches.

    Args:
        model: before it gets an adapter.
        targets: names (a module's full name, or the end of it), a regular expression, or "all-linear".
        whole: modules that are trained whole and get no adapter, from `trained_whole`.

    Raises:
        ConfigError: with the module names closest in spelling, or a name matches only what is trained whole.
    """
    whole = list(whole)
    modules = outside(model, whole)
    if targets == ALL_LINEAR:
        if not any(isinstance(module, nn.Linear | Conv1D) for _, module in modules):
            what = f"{type(model).__name__} has no linear layer outside its head, so {ALL_LINEAR!r} adapts nothing"
            kinds = sorted({name.rpartition(".")[2] for name, m in modules if isinstance(m, nn.Conv2d | nn.Conv1d)})
            remedy = f"name modules to adapt (--target-modules), such as {', '.join(kinds[:5])}"
            raise ConfigError(what, remedy=remedy)
        return
    leaves = sorted({name.rpartition(".")[2] for name, m in modules if not list(m.children())})
    try:
        for target in _parsed(targets):
            if any(_matches(target, name) for name, _ in modules):
                continue
            shown = f"target_modules={targets!r}" if isinstance(targets, str) else f"target module {target!r}"
            if any(_matches(target, name) for name, _ in model.named_modules()):
                what = f"{shown} names only what is trained whole: {', '.join(whole)}"
                raise ConfigError(what, remedy="leave it out, it is trained and saved anyway; or use 'all-linear'")
            near = did_you_mean(targets.rpartition(".")[2] if isinstance(targets, str) else str(target), leaves)
            raise ConfigError(f"{shown} does not exist in {type(model).__name__}: it matches no module", remedy=near)
    except re.error as error:
        what = f"target_modules={targets!r} is not a valid regular expression: {error}"
        raise ConfigError(what, remedy="separate names with commas") from None


def _parsed(targets: str | list[str]) -> Sequence[str | re.Pattern[str]]:
    return [re.compile(targets)] if isinstance(targets, str) else targets


def _matches(target: str | re.Pattern[str], name: str) -> bool:
    if isinstance(target, re.Pattern):
        return target.fullmatch(name) is not None
    return name == target or name.endswith("." + target)


def embeddings_of(model: Any) -> tuple[nn.Module | None, nn.Module | None]:
    """The input embeddings and the output layer of a model without its adapter; None for what it does not have."""
    found: list[nn.Module | None] = []
    for get in ("get_input_embeddings", "get_output_embeddings"):
        try:
            found.append(getattr(model, get)())
        except (AttributeError, NotImplementedError):  # a model for images
            found.append(None)
    return found[0], found[1]


def adapted_modules(model: nn.Module) -> list[str]:
    """Names of the modules with a LoRA adapter, in the order of the model."""
    return [name for name, module in model.named_modules() if isinstance(module, LoraLayer)]


def whole_modules(model: nn.Module) -> list[str]:
    """Names in the base model of the modules that are trained whole, in the order of the model."""
    found = [name for name, module in model.named_modules() if isinstance(module, ModulesToSaveWrapper)]
    return [name.removeprefix("base_model.model.") for name in found]
