"""Which of our layers replaces which module, and which modules are refused.

Foreign private API used here: the LoRA layer classes of `peft.tuners.lora.layer`, by which `enable_allora` knows them.
"""

from __future__ import annotations

from typing import Any

from peft.tuners.lora import layer as peft_layers
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers.pytorch_utils import Conv1D

from ..errors import LayerError
from . import quantized
from .layers import Conv1d, Conv2d, Conv3d, Embedding, Linear, ParamWrapper, check_base

_LAYERS: dict[type[nn.Module], type[Any]] = {
    nn.Linear: Linear,
    Conv1D: Linear,
    nn.Embedding: Embedding,
    nn.Conv1d: Conv1d,
    nn.Conv2d: Conv2d,
    nn.Conv3d: Conv3d,
}
_SCALED_EMBEDDINGS = ("Gemma2TextScaledWordEmbedding", "Gemma3TextScaledWordEmbedding", "Gemma3nTextScaledWordEmbedding")


def build_layer(target: nn.Module, adapter_name: str, config: Any, **kwargs: Any) -> nn.Module:
    """Our LoRA layer around `target`. PEFT calls this for every targeted module (`LoraConfig._custom_modules`).

    Raises:
        LayerError: the rule is not tested on this class of layer. It is never trained as plain LoRA instead.
    """
    base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
    name = kwargs.get("target_name", "")
    parameter_name = kwargs.pop("parameter_name", None)
    weight: Any = getattr(base, parameter_name or "weight", None)
    if isinstance(weight, DTensor):
        raise LayerError(
            "the layer's weight is already sharded, and its adapter would not be",
            where=f"layer {name!r}",
            remedy="build the adapter first (get_peft_model), then shard the model (FSDP); tensor parallelism is not supported",
        )
    layer_class = quantized.layer_class(base, name) if parameter_name is None else ParamWrapper
    if layer_class is not None and layer_class is not ParamWrapper:
        return layer_class(target, adapter_name, config=config, **kwargs)
    if layer_class is None:
        layer_class = Embedding if type(base).__name__ in _SCALED_EMBEDDINGS else _LAYERS.get(type(base))
    if layer_class is None or type(weight) not in (nn.Parameter, Tensor) or not weight.is_floating_point():
        known = ", ".join(sorted(c.__name__ for c in _LAYERS))
        raise LayerError(
            f"ALLoRA is not tested on {type(base).__module__}.{type(base).__name__}"
            + ("" if weight is None else f" with a weight of type {type(weight).__name__}")
            + f", and does not train plain LoRA instead; it supports {known} with floating-point weights, "
            + f"and {quantized.KNOWN}",
            where=f"layer {name!r}",
            remedy="leave this layer out of target_modules, or load the model unquantized",
        )
    if parameter_name is not None:
        return ParamWrapper(target, adapter_name, parameter_name=parameter_name, config=config, **kwargs)
    check_base(base, name)
    if layer_class is Linear:
        transposed = isinstance(base, Conv1D)
        config.fan_in_fan_out = transposed  # as PEFT does: it is part of the stock configuration on disk
        kwargs["is_target_conv_1d_layer"] = transposed
    return layer_class(target, adapter_name, config=config, **kwargs)


_STOCK: dict[type[Any], type[Any]] = {
    getattr(peft_layers, c.__name__): c for c in (Linear, Embedding, Conv1d, Conv2d, Conv3d, ParamWrapper)
}


def enable_allora(model: nn.Module) -> int:
    """Let the LoRA layers that a stock `LoraConfig` built take ALLoRA adapters, too. Existing adapters stay LoRA.

    Args:
        model: a `PeftModel`, or any model with PEFT's LoRA layers. Changed in place.

    Returns:
        the number of layers that were changed. Layers on modules that ALLoRA is not tested on stay as they are, and an ALLoRA
        adapter on them is refused.
    """
    changed = 0
    for module in model.modules():
        ours = _STOCK.get(type(module)) or quantized.ours(type(module))
        if ours is Linear:  # PEFT also puts it on bitsandbytes' layers, if the model does not say that it is quantized
            ours = quantized.layer_class(module.get_base_layer(), "") or Linear  # pyright: ignore
        if ours is not None:
            module.__class__ = ours
            changed += 1
    return changed
