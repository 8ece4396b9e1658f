"""The state of an adapter while it is trained: row norms of BA and scales, layer by layer."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from .factors import adapter_parameters, adapter_row_norms
from .update import row_factors


class LayerState(NamedTuple):
    """One adapter of one layer. Norms are those of the rows of c BA, where c is the constant factor on the branch."""

    mean_norm: float
    max_norm: float
    min_scale: float | None  # None for a method without a scale per row
    mean_scale: float | None


@torch.no_grad()
def layer_states(model: nn.Module, adapter: str = "default") -> dict[str, LayerState]:
    """The state of every layer with that adapter, by module name. Layers whose factors are sharded are left out.

    PEFT's own LoRA layers are included, so that methods can be compared.
    """
    states: dict[str, LayerState] = {}
    for name, module in model.named_modules():
        layer: Any = module
        found = adapter_parameters(layer, adapter)
        if found is None or any(isinstance(factor, DTensor) for factor in found):
            continue
        norms = adapter_row_norms(layer, adapter) * abs(float(layer.scaling[adapter]))
        rule = getattr(layer.lora_variant.get(adapter), "rule", None)
        s = row_factors(layer, adapter, rule) if rule is not None and rule.scales_rows else None
        states[name] = LayerState(
            norms.mean().item(),
            norms.max().item(),
            None if s is None else s.min().item(),
            None if s is None else s.mean().item(),
        )
    return states


def summary(states: dict[str, LayerState], learning_rate: float) -> dict[str, float]:
    """All layers as one: means over layers, extremes over layers, and the effective learning rate (the mean scale times it)."""
    if not states:
        return {}
    norms = [s.mean_norm for s in states.values()]
    scales = [s.mean_scale for s in states.values() if s.mean_scale is not None]
    numbers = {"rule/row_norm_mean": sum(norms) / len(norms), "rule/row_norm_max": max(s.max_norm for s in states.values())}
    if scales:
        numbers["rule/scale_min"] = min(s.min_scale for s in states.values() if s.min_scale is not None)
        numbers["rule/effective_learning_rate"] = learning_rate * sum(scales) / len(scales)
    return numbers
