"""PEFT's LoRA layers with the rule.

Each class here is PEFT's layer of the same name with two changes. An adapter whose configuration has a rule gets our variant,
whether it is the layer's first adapter or its fifth, and its alpha/r is 1. `Linear` also computes the frozen layer and the
adapter in one autograd node where nothing else has to happen between them.

Foreign private API used here: the LoRA layer classes of `peft.tuners.lora.layer`, their `update_layer`,
`resolve_lora_variant` and `lora_variant`; the names of torch's hooks; and the attribute by which transformers marks
tensor-parallel layers.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.lora import layer as peft_layers
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..errors import LayerError
from ..ops import fast_paths
from ..ops.delta_weight import lora_delta_weight
from ..ops.linear import lora_linear
from .factors import adapter_parameters, adapter_row_norms, by_expert, unsharded_parameters
from .rule import rule_of
from .variants import AlloraVariant, ConvVariant, EmbeddingVariant, LinearVariant

# A plain class at run time: with PEFT's abstract base class in front, Python could not reassign `__class__` in `enable_allora`.
_LoraLayer = peft_layers.LoraLayer if TYPE_CHECKING else object


def check_base(base: nn.Module, name: str) -> None:
    """Raise `LayerError` if the rule is not defined on the frozen layer `base`, or not tested there."""
    where = f"layer {name!r} ({type(base).__module__}.{type(base).__name__})" if name else f"a {type(base).__name__}"

    def refuse(what: str, remedy: str = "leave this layer out of target_modules (exclude_modules=...)") -> None:
        raise LayerError(what, where=where, remedy=remedy)

    if getattr(base, "_hf_tp_plan", None) is not None:
        refuse("tensor-parallel layers are not supported", "train with data parallelism (DDP, FSDP)")
    if isinstance(base, nn.Embedding):
        for setting in ("max_norm", "scale_grad_by_freq", "sparse"):
            if getattr(base, setting):
                refuse(f"an embedding with {setting} is not supported")
    if isinstance(base, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        if any(d != 1 for d in base.dilation) or base.padding_mode != "zeros":
            refuse("dilation and padding other than zeros are not supported (PEFT's LoRA ignores them)")
        if base.padding == "same" and any(k % 2 == 0 for k in base.kernel_size):
            refuse("padding='same' with an even kernel is not supported")


class AlloraLayer(_LoraLayer):
    """What our layer types share. An adapter with a stock `LoraConfig` is PEFT's own LoRA on them, including DoRA."""

    variant_class: type[AlloraVariant]
    in_features: int
    out_features: int
    lora_A: Any  # ModuleDict by adapter name
    lora_B: Any

    def resolve_lora_variant(self, *, config: Any, **kwargs: Any) -> Any:
        rule = rule_of(config)
        return super().resolve_lora_variant(config=config, **kwargs) if rule is None else self.variant_class(rule)

    def update_layer(self, adapter_name: str, r: int, lora_alpha: int, config: Any, **kwargs: Any) -> None:
        if rule_of(config) is not None:
            check_base(self.get_base_layer(), kwargs.get("target_name", ""))
            if kwargs.get("tied_adapter"):
                raise LayerError(
                    "ensure_weight_tying=True shares one adapter between the embedding and the output layer, whose rows "
                    "are different features: the rule is not defined there",
                    remedy="target only one of the two layers, or set ensure_weight_tying=False",
                )
            lora_alpha = r
            if r > min(self.in_features, self.out_features):
                warnings.warn(
                    f"r={r} is more than the smaller side of a {self.out_features} x {self.in_features} layer; the rank of BA "
                    "cannot exceed that side",
                    stacklevel=2,
                )
        super().update_layer(adapter_name, r, lora_alpha=lora_alpha, config=config, **kwargs)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # pyright: ignore[reportAttributeAccessIssue] (nn.Module's)
        for name, variant in self.lora_variant.items():
            if isinstance(variant, AlloraVariant):
                variant.init(self, name)  # a copy of a tracked layer is tracked, too

    def adapter_parameters(self, name: str) -> tuple[Tensor, Tensor]:
        """The parameters A and B of adapter `name`, as the optimizer holds them."""
        found = adapter_parameters(self, name)
        assert found is not None
        return found

    def adapter_row_norms(self, name: str) -> Tensor:
        """||(BA)_i|| of adapter `name`: (..., n1), float32 or wider."""
        return adapter_row_norms(self, name)


class Linear(AlloraLayer, peft_layers.Linear):
    """nn.Linear and GPT-2's Conv1D, in place of `peft.tuners.lora.Linear`."""

    variant_class = LinearVariant

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        name = None if args or kwargs else self._fusible_adapter()
        if name is None:
            return super().forward(x, *args, **kwargs)
        base: Any = self.base_layer
        variant: Any = self.lora_variant[name]
        A, B = unsharded_parameters(self, name)
        return lora_linear(
            x, base.weight, base.bias, A, B, gradient=variant.rule.gradient, eta=variant.rule.eta,
            scaling=self.scaling[name], fan_in_fan_out=isinstance(base, Conv1D),
        )  # fmt: skip

    def _fusible_adapter(self) -> str | None:
        """The one active adapter, if the fused node computes everything that has to be computed here."""
        if self._disable_adapters or self.merged_adapters or type(self.base_layer) not in (nn.Linear, Conv1D):
            return None
        if not fast_paths.current().fused:
            return None
        active = [name for name in self.active_adapters if name in self.lora_A]
        if len(active) != 1:
            return None
        name = active[0]
        variant = self.lora_variant.get(name)
        if not isinstance(variant, LinearVariant) or variant.rule.scales_output:
            return None
        dropout = self.lora_dropout[name]
        if isinstance(dropout, nn.Dropout) and dropout.training and dropout.p > 0:
            return None
        # The fused node reads the frozen weight without calling the layer, so a layer with hooks cannot be fused.
        return None if _has_hooks(self.base_layer) else name


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__  # accelerate's offloading replaces the method
    )


class Embedding(AlloraLayer, peft_layers.Embedding):
    """nn.Embedding, in place of `peft.tuners.lora.Embedding`."""

    variant_class = EmbeddingVariant


class _Conv(AlloraLayer):
    variant_class = ConvVariant

    @property
    def zero_padding(self) -> tuple[int, ...]:
        """The frozen layer's padding as numbers, one per spatial dimension."""
        base: Any = self.get_base_layer()
        if base.padding == "valid":
            return (0,) * len(base.kernel_size)
        if base.padding == "same":  # odd kernels only, see `check_base`
            return tuple((k - 1) // 2 for k in base.kernel_size)
        return base.padding


class Conv1d(_Conv, peft_layers.Conv1d):
    """nn.Conv1d, in place of `peft.tuners.lora.Conv1d`."""


class Conv2d(_Conv, peft_layers.Conv2d):
    """nn.Conv2d, in place of `peft.tuners.lora.Conv2d`."""


class Conv3d(_Conv, peft_layers.Conv3d):
    """nn.Conv3d, in place of `peft.tuners.lora.Conv3d`."""


class ParamWrapper(AlloraLayer, peft_layers.ParamWrapper):
    """A parameter of a module, such as the stacked experts of a mixture-of-experts layer (`target_parameters`).

    The weight W_e + B_e A_e is formed before it is used, so the rule acts on the matrix BA itself (`ops/delta_weight.py`).
    """

    variant_class = AlloraVariant

    def resolve_lora_variant(self, *, config: Any, **kwargs: Any) -> Any:
        rule = rule_of(config)
        if rule is None:
            return super().resolve_lora_variant(config=config, **kwargs)
        if rule.gradient == "entry" or rule.scales_output:
            raise LayerError(
                "target_parameters: this method reads the adapter's output, and a parameter has none",
                remedy="target modules instead, or use the method allora",
            )
        return None  # PEFT's ParamWrapper refuses variants; ours is added after its `update_layer`

    def update_layer(self, adapter_name: str, r: int, lora_alpha: int, config: Any, **kwargs: Any) -> None:
        super().update_layer(adapter_name, r, lora_alpha=lora_alpha, config=config, **kwargs)
        rule = rule_of(config)
        if rule is not None:
            self.lora_variant[adapter_name] = variant = AlloraVariant(rule)
            variant.init(self, adapter_name)

    def get_delta_weight(self, adapter_name: str, *args: Any, **kwargs: Any) -> Tensor:
        variant = self.lora_variant.get(adapter_name)
        if not isinstance(variant, AlloraVariant) or variant.rule.gradient == "plain":
            return super().get_delta_weight(adapter_name, *args, **kwargs)
        A, B = by_expert(*unsharded_parameters(self, adapter_name), self.num_experts)
        delta = lora_delta_weight(A, B, eta=variant.rule.eta, scaling=self.scaling[adapter_name])
        if self._param_ndim == 2:
            delta = delta.squeeze(0)
        elif not self._did_swap_in_out_features:  # stored as (experts, in, out)
            delta = delta.mT
        return delta.to(self.get_param().dtype)

    def get_delta_factors(self, adapter_name: str) -> tuple[Tensor, Tensor, float]:
        """PEFT multiplies these factors itself to save a temporary; its product of A and B would not follow the rule."""
        delta = self.get_delta_weight(adapter_name)
        identity = torch.eye(delta.shape[-1], dtype=delta.dtype, device=delta.device).expand(self.num_experts, -1, -1)
        return delta, identity, 1.0
