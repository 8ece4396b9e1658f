"""The factors A and B of an adapter on a PEFT LoRA layer of any type, and their layout.

Works on PEFT's own layers and on ours. Foreign private API used here: the names under which PEFT's LoRA layers hold A and B,
and its layout of stacked experts (`peft.tuners.lora.layer.ParamWrapper`, with `_param_ndim` and
`_did_swap_in_out_features`).
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import layer as peft_layers
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers.pytorch_utils import Conv1D

from ..errors import LayerError
from ..ops.conv import expand_groups
from ..ops.scale import row_norms


def adapter_parameters(layer: Any, name: str) -> tuple[Tensor, Tensor] | None:
    """The parameters A and B of adapter `name`, as the optimizer holds them; None if the layer has no such adapter."""
    if name in getattr(layer, "lora_A", ()):
        return layer.lora_A[name].weight, layer.lora_B[name].weight
    if name in getattr(layer, "lora_embedding_A", ()):
        return layer.lora_embedding_A[name], layer.lora_embedding_B[name]
    return None


def unsharded_parameters(layer: Any, name: str) -> tuple[Tensor, Tensor]:
    """The parameters A and B, refused if they are sharded: the norm of a row of BA needs all columns of A.

    FSDP2 shows a shard as a `DTensor`; FSDP1 and DeepSpeed's ZeRO-3 flatten it.

    Raises:
        LayerError: a factor is sharded at this moment.
    """
    found = adapter_parameters(layer, name)
    assert found is not None
    for factor_name, factor in zip("AB", found, strict=True):
        if isinstance(factor, DTensor) or factor.dim() < 2:
            raise LayerError(
                f"factor {factor_name} is sharded while ALLoRA reads it, and the norm of a row of BA needs the whole matrix",
                remedy="shard whole decoder layers, not the adapter's own modules: fully_shard(layer) for each, or "
                "accelerate with fsdp_version: 2 and TRANSFORMER_BASED_WRAP; outside the forward pass gather the weights "
                "first (fsdp_module.unshard() or full_tensor())",
            )
    return found


def adapter_matrices(layer: Any, name: str) -> tuple[Tensor, Tensor]:
    """A as (..., r, n2) and B as (..., n1, r): detached views into the parameters, one matrix pair per expert.

    In a convolution with groups B has r/groups columns, see `alloralib.ops.conv.expand_groups`.

    Raises:
        LayerError: a factor is sharded at this moment.
    """
    A, B = unsharded_parameters(layer, name)
    if isinstance(layer, peft_layers.ParamWrapper):
        return by_expert(A.detach(), B.detach(), layer.num_experts)
    return A.detach().flatten(1), B.detach().flatten(1)


def adapter_row_norms(layer: Any, name: str) -> Tensor:
    """||(BA)_i|| of adapter `name`: (..., n1), float32 or wider.

    Raises:
        LayerError: a factor is sharded at this moment.
    """
    return row_norms(*expanded(layer, *adapter_matrices(layer, name)))


def expanded(layer: Any, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """A and B whose product is BA also in a convolution with groups, whose B has r/groups columns."""
    base = layer.get_base_layer()
    return A, expand_groups(B, base.groups) if isinstance(base, nn.Conv1d | nn.Conv2d | nn.Conv3d) else B


@torch.no_grad()
def weight_row_norms(layer: Any) -> Tensor:
    """||W_i|| of the frozen layer, for the rows that BA has: (..., n1), float32 or wider. Quantized weights are dequantized."""
    base = layer.get_base_layer()
    if isinstance(layer, peft_layers.ParamWrapper):
        weight = layer.get_param()
        if layer._param_ndim == 2:
            weight = weight[None]
        elif not layer._did_swap_in_out_features:  # stored as (experts, in, out)
            weight = weight.mT
    else:
        weight = dequantize_module_weight(base)
        weight = weight.mT if isinstance(base, nn.Embedding | Conv1D) else weight.flatten(1)
    wide = torch.promote_types(weight.dtype, torch.float32)
    return torch.linalg.vector_norm(weight.detach(), dim=-1, dtype=wide)


def by_expert(A: Tensor, B: Tensor, experts: int) -> tuple[Tensor, Tensor]:
    """Views of stacked experts' factors as (experts, r, n2) and (experts, n1, r).

    PEFT stores A as (experts * r, n2), by expert and then by rank, and B as (n1, r * experts), by rank and then by expert.
    """
    return A.view(experts, -1, A.shape[-1]), B.view(B.shape[0], -1, experts).permute(2, 0, 1)
