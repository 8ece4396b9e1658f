"""From configuration to layers: which of ours goes in place of which module, and which modules are refused.

Foreign private API used here: the LoRA layer classes of `peft.tuners.lora.layer`, by which `enable_allora` knows them, and
`LoraModel._create_and_replace`, through which every adapter of every layer goes.
"""

from __future__ import annotations

import functools
from typing import Any

from peft.tuners.lora import LoraModel
from peft.tuners.lora import layer as peft_layers
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers.pytorch_utils import Conv1D

from ..errors import LayerError
from . import quantized, siblings
from .config import AlloraConfig
from .layers import AlloraLayer, Conv1d, Conv2d, Conv3d, Embedding, Linear, ParamWrapper, check_base

__all__ = ["AlloraLayer", "Conv1d", "Conv2d", "Conv3d", "Embedding", "Linear", "ParamWrapper", "enable_allora", "build_layer"]

_LAYERS: dict[type[nn.Module], type[Any]] = {
    nn.Linear: Linear,
    Conv1D: Linear,
    nn.Embedding: Embedding,
    nn.Conv1d: Conv1d,
    nn.Conv2d: Conv2d,
    nn.Conv3d: Conv3d,
}
_SCALED_EMBEDDINGS = ("Gemma2TextScaledWordEmbedding", "Gemma3TextScaledWordEmbedding", "Gemma3nTextScaledWordEmbedding")


def _layer_class(base: nn.Module) -> type[Any] | None:
    if type(base).__name__ in _SCALED_EMBEDDINGS:
        return Embedding
    return _LAYERS.get(type(base))


def build_layer(target: nn.Module, adapter_name: str, config: AlloraConfig, **kwargs: Any) -> nn.Module:
    """PEFT calls this for every targeted module that has no LoRA layer yet (`LoraConfig._custom_modules`).

    Raises:
        LayerError: a layer class that the rule is not tested on. It never trains plain LoRA under our name.
    """
    base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
    name = kwargs.get("target_name", "")
    parameter_name = kwargs.pop("parameter_name", None)
    weight: Any = getattr(base, parameter_name or "weight", None)
    if isinstance(weight, DTensor):
        raise LayerError(
            "the layer's weight is sharded already, and its adapter would not be",
            where=f"layer {name!r}",
            remedy="build the adapter first (get_peft_model), then shard the model (FSDP); tensor parallelism is not supported",
        )
    layer_class = quantized.layer_class(base, name) if parameter_name is None else ParamWrapper
    if layer_class is not None and layer_class is not ParamWrapper:
        return layer_class(target, adapter_name, config=config, **kwargs)
    layer_class = layer_class or _layer_class(base)
    if layer_class is None or type(weight) not in (nn.Parameter, Tensor) or not weight.is_floating_point():
        known = ", ".join(sorted(c.__name__ for c in _LAYERS))
        raise LayerError(
            f"ALLoRA is not tested on {type(base).__module__}.{type(base).__name__}"
            + ("" if weight is None else f" with a weight of type {type(weight).__name__}")
            + f", and will not train plain LoRA in its place; it knows {known} with floating-point weights, "
            + f"and {quantized.KNOWN}",
            where=f"layer {name!r}",
            remedy="leave this layer out of target_modules, or load the model unquantized",
        )
    if parameter_name is not None:
        return ParamWrapper(target, adapter_name, parameter_name=parameter_name, config=config, **kwargs)
    check_base(base, name)
    if layer_class is Linear:
        transposed = isinstance(base, Conv1D)
        config.fan_in_fan_out = transposed  # as PEFT does, for the stock configuration on disk
        kwargs["is_target_conv_1d_layer"] = transposed
    return layer_class(target, adapter_name, config=config, **kwargs)


_STOCK: dict[type[Any], type[Any]] = {
    getattr(peft_layers, c.__name__): c for c in (Linear, Embedding, Conv1d, Conv2d, Conv3d, ParamWrapper)
}


def enable_allora(model: nn.Module) -> int:
    """Teach the LoRA layers that a stock `LoraConfig` built to take ALLoRA adapters too; existing adapters stay LoRA.

    Args:
        model: a `PeftModel`, or any model with PEFT's LoRA layers in it. Changed in place.

    Returns:
        the number of layers that were changed. Layers on bases that the rule is not tested on stay as they are, and refuse.
    """
    adopted = 0
    for module in model.modules():
        ours = _STOCK.get(type(module)) or quantized.ours(type(module))
        if ours is Linear:  # PEFT builds it on bitsandbytes' layers too, where the model does not say how it was loaded
            ours = quantized.layer_class(module.get_base_layer(), "") or Linear  # pyright: ignore
        if ours is not None:
            module.__class__ = ours
            adopted += 1
    for path, module in model.named_modules():
        siblings.introduce(module, path)
    return adopted


def _watch_layers() -> None:
    """See every adapter that PEFT gives to a layer: refuse some, and make siblings known to each other.

    Refused is an ALLoRA adapter on a LoRA layer that a stock `LoraConfig` built.

    A second adapter goes to the layers that the first one built, and each class of PEFT's layers looks for variants in
    its own way; several (bitsandbytes, GPTQ, HQQ) would not see ours and train plain LoRA under its name.
    """
    create_and_replace = LoraModel._create_and_replace  # pyright: ignore[reportPrivateUsage]

    @functools.wraps(create_and_replace)
    def checked(
        self: LoraModel, lora_config: Any, adapter_name: str, target: nn.Module, target_name: str, parent: nn.Module,
        current_key: str, **kwargs: Any,
    ) -> None:  # fmt: skip
        if (
            isinstance(lora_config, AlloraConfig)
            and isinstance(target, peft_layers.LoraLayer)
            and not isinstance(target, AlloraLayer)
        ):
            raise LayerError(
                "this model's LoRA layers were built by a stock LoraConfig and cannot train ALLoRA",
                where=f"{type(target).__module__}.{type(target).__name__}",
                remedy="call alloralib.enable_allora(model) once before adding the adapter (or add the ALLoRA adapter first)",
            )
        create_and_replace(self, lora_config, adapter_name, target, target_name, parent, current_key, **kwargs)
        siblings.introduce(parent, current_key.rpartition(".")[0])

    LoraModel._create_and_replace = checked  # pyright: ignore[reportPrivateUsage]


_watch_layers()
