"""What the rule does, layer by layer, while an adapter is trained."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from ..ops.scale import row_norms, scale


class LayerState(NamedTuple):
    """One adapter of one layer; norms are those of the rows of c BA, c the factor on the branch."""

    mean_norm: float
    max_norm: float
    min_scale: float | None  # None for a method without the rule
    mean_scale: float | None


@torch.no_grad()
def layer_states(model: nn.Module, adapter: str = "default") -> dict[str, LayerState]:
    """The state of every adapted layer, by module name.

    Works on PEFT's own LoRA layers too, so that methods can be compared. Layers that hold no A and B of that adapter, or
    hold them sharded, are left out.
    """
    states: dict[str, LayerState] = {}
    for name, module in model.named_modules():
        factors = _factors(module, adapter)
        if factors is None or any(isinstance(f, DTensor) for f in factors):
            continue
        measured = getattr(module, "adapter_row_norms", None)
        if measured is None:
            norms = row_norms(factors[0].flatten(1), factors[1].flatten(1)) if _is_plain(module) else None
        else:
            norms = measured(adapter)
        if norms is None:
            continue
        norms = norms * abs(float(module.scaling[adapter]))  # pyright: ignore[reportIndexIssue, reportArgumentType]
        variant = module.lora_variant.get(adapter)  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
        member = getattr(variant, "member", None)
        s = scale(norms, variant.eta) if member is not None and member.gradient == "row" else None
        states[name] = LayerState(
            norms.mean().item(),
            norms.max().item(),
            None if s is None else s.min().item(),
            None if s is None else s.mean().item(),
        )
    return states


def summary(states: dict[str, LayerState], learning_rate: float) -> dict[str, float]:
    """The model as one layer: means over layers, extremes over all; and the effective learning rate, mean s times it."""
    if not states:
        return {}
    norms = [s.mean_norm for s in states.values()]
    scales = [s.mean_scale for s in states.values() if s.mean_scale is not None]
    numbers = {"rule/row_norm_mean": sum(norms) / len(norms), "rule/row_norm_max": max(s.max_norm for s in states.values())}
    if scales:
        numbers["rule/scale_min"] = min(s.min_scale for s in states.values() if s.min_scale is not None)
        numbers["rule/effective_learning_rate"] = learning_rate * sum(scales) / len(scales)
    return numbers


def _factors(module: Any, adapter: str) -> tuple[torch.Tensor, torch.Tensor] | None:
    if adapter in getattr(module, "lora_A", ()):
        return module.lora_A[adapter].weight, module.lora_B[adapter].weight
    if adapter in getattr(module, "lora_embedding_A", ()):
        return module.lora_embedding_A[adapter], module.lora_embedding_B[adapter]
    return None


def _is_plain(module: Any) -> bool:
    """Whether BA is the product of the two matrices as they are."""
    return not isinstance(module.get_base_layer(), nn.Conv1d | nn.Conv2d | nn.Conv3d)
