"""The rule on quantized linear layers of bitsandbytes and torchao. The frozen weight stays as it is stored.

The rule reads A and B and never W, so PEFT's own layers for these libraries need only our variant.

Foreign private API used here: `peft.tuners.lora.bnb.Linear4bit` and `Linear8bitLt`, `peft.tuners.lora.torchao.
TorchaoLoraLinear`, and how the two libraries mark a weight: bitsandbytes' `quant_state`, `packing_format_for_cpu`,
`support_avx512bf16_for_cpu` and `has_fp16_weights`; torchao's `act_quant_kwargs` and `activation_quantization`.

Neither library is imported before a model with one of its layers is adapted, which has imported it already.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

import torch
from peft.tuners.lora import torchao as peft_torchao
from torch import nn

from ..errors import LayerError, MergeError
from .layers import AlloraLayer
from .rule import rule_of
from .variants import AlloraVariant, LinearVariant

KNOWN = "quantized Linear4bit and Linear8bitLt (bitsandbytes) and weight-only int8, intx and float8 (torchao)"

# torchao's tensors that can quantize the weight alone, and the attribute that is None if they do. With quantized activations
# torchao has no backward pass: no gradient would reach the layers below.
_TORCHAO_WEIGHT_ONLY = {
    "Int8Tensor": "act_quant_kwargs",
    "Float8Tensor": "act_quant_kwargs",
    "IntxUnpackedToInt8Tensor": "activation_quantization",
}


class _Quantized(AlloraLayer):
    variant_class = LinearVariant

    def update_layer(self, adapter_name: str, r: int, lora_alpha: int, config: Any, **kwargs: Any) -> None:
        if rule_of(config) is not None:  # a second adapter comes here and not through `build_layer`
            layer_class(self.get_base_layer(), kwargs.get("target_name", ""))
        super().update_layer(adapter_name, r, lora_alpha=lora_alpha, config=config, **kwargs)


@cache
def _bitsandbytes() -> dict[type[Any], type[Any]]:
    """Our layer classes by PEFT's. Built on first use, because PEFT's module imports bitsandbytes."""
    from peft.tuners.lora import bnb as peft_bnb

    class Linear4bit(_Quantized, peft_bnb.Linear4bit):
        """bitsandbytes' 4-bit layers (nf4, fp4), in place of `peft.tuners.lora.bnb.Linear4bit`."""

        def update_layer(self, adapter_name: str, r: int, lora_alpha: int, config: Any, **kwargs: Any) -> None:
            super().update_layer(adapter_name, r, lora_alpha=lora_alpha, config=config, **kwargs)
            # On a CPU with AVX512-BF16 the first evaluation repacks the weight in place for an inference kernel. After that
            # no gradient comes back through the layer, and merging reads noise (bitsandbytes 0.50).
            base: Any = self.get_base_layer()
            base.support_avx512bf16_for_cpu = False

    class Linear8bitLt(_Quantized, peft_bnb.Linear8bitLt):
        """bitsandbytes' 8-bit layers (LLM.int8), in place of `peft.tuners.lora.bnb.Linear8bitLt`."""

    return {peft_bnb.Linear4bit: Linear4bit, peft_bnb.Linear8bitLt: Linear8bitLt}


class TorchaoLinear(_Quantized, peft_torchao.TorchaoLoraLinear):
    """nn.Linear whose weight is one of torchao's tensors, in place of `peft.tuners.lora.torchao.TorchaoLoraLinear`."""

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """As PEFT's, which does not ask the variant whether it can be merged."""
        for name in self.active_adapters if adapter_names is None else adapter_names:
            variant = self.lora_variant.get(name)
            if isinstance(variant, AlloraVariant):
                variant.rule.check_mergeable(f"adapter {name!r}")
        if self.get_apply_tensor_subclass is None:
            raise MergeError(
                "the layer does not know how its weight was quantized, and a merged weight has to be quantized again",
                remedy="load the model with from_pretrained(..., quantization_config=TorchAoConfig(...)), or keep the "
                "adapter unmerged",
            )
        super().merge(safe_merge=safe_merge, adapter_names=adapter_names)


def ours(stock: type[nn.Module]) -> type[Any] | None:
    """Our layer class in place of PEFT's class `stock`; None if that is not a class for a quantized layer."""
    if stock is peft_torchao.TorchaoLoraLinear:
        return TorchaoLinear
    if "peft.tuners.lora.bnb" not in sys.modules:
        return None
    return _bitsandbytes().get(stock)


def layer_class(base: nn.Module, name: str) -> type[Any] | None:
    """Our layer class for the frozen layer `base`; None if it is not a quantized linear layer of bitsandbytes or torchao.

    Raises:
        LayerError: it is one that cannot be trained through, with the reason.
    """
    library = type(base).__module__.partition(".")[0]
    if library == "bitsandbytes" and isinstance(base, nn.Linear):
        return _bitsandbytes_class(base, name)
    weight = getattr(base, "weight", None)
    if type(base) is nn.Linear and type(weight).__module__.partition(".")[0] == "torchao":
        _check_torchao(weight, name)
        return TorchaoLinear
    return None


def _bitsandbytes_class(base: Any, name: str) -> type[Any] | None:
    import bitsandbytes  # installed, because `base` is one of its layers
    from peft.tuners.lora import bnb as peft_bnb

    layers: Any = bitsandbytes.nn
    if type(base) in (layers.Linear4bit, layers.LinearNF4, layers.LinearFP4):
        if getattr(base.weight, "quant_state", None) is None:
            raise _refusal(base, name, "its weight is not quantized yet", "move the model to its device first: model.to('cpu')")
        if getattr(base.weight.quant_state, "packing_format_for_cpu", False):
            why = "bitsandbytes has repacked its weight for inference on this CPU, and a repacked weight has no gradient"
            raise _refusal(base, name, why, "load the model again, and add the adapter before its first evaluation")
        return _bitsandbytes()[peft_bnb.Linear4bit]
    if type(base) is layers.Linear8bitLt:
        if base.weight.dtype != torch.int8 or base.state.has_fp16_weights:
            remedy = "build it with has_fp16_weights=False and move the model to its device first: model.to('cpu')"
            raise _refusal(base, name, "it keeps a 16-bit weight, or is not quantized yet", remedy)
        return _bitsandbytes()[peft_bnb.Linear8bitLt]
    return None


def _check_torchao(weight: Any, name: str) -> None:
    kind = type(weight).__name__
    if kind not in _TORCHAO_WEIGHT_ONLY:
        remedy = "leave this layer out of target_modules, or load the model unquantized"
        raise _refusal(weight, name, f"it is not one of the tested kinds: {', '.join(_TORCHAO_WEIGHT_ONLY)}", remedy)
    if getattr(weight, _TORCHAO_WEIGHT_ONLY[kind]) is not None:
        why = "it quantizes the activations too, which has no gradient in torchao: the layers below would not learn"
        remedy = "quantize the weight alone (Int8WeightOnlyConfig, Float8WeightOnlyConfig, IntxWeightOnlyConfig)"
        raise _refusal(weight, name, why, remedy)


def _refusal(what: Any, name: str, why: str, remedy: str) -> LayerError:
    message = f"ALLoRA does not train on {type(what).__module__}.{type(what).__name__}: {why}"
    return LayerError(message, where=f"layer {name!r}" if name else None, remedy=remedy)
