"""PEFT's LoRA layers, taught the rule.

Each class here is PEFT's own layer of the same name with two changes: an adapter whose configuration is an
`AlloraConfig` gets our variant, whether it is the layer's first or its fifth, and alpha/r is 1 for it. `Linear` also
fuses the frozen layer and the adapter into one autograd node where nothing else is going on.

Foreign private API used here: the LoRA layer classes of `peft.tuners.lora.layer`, their `update_layer`,
`resolve_lora_variant` and `lora_variant`, and the names under which transformers marks tensor-parallel layers.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.lora import layer as peft_layers
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers.pytorch_utils import Conv1D

from ..errors import LayerError
from ..ops.conv import expand_groups
from ..ops.delta import lora_delta
from ..ops.linear import LinearLayer, lora_linears
from ..ops.scale import row_norms
from . import siblings, update
from .config import AlloraConfig
from .variants import AlloraVariant, ConvVariant, EmbeddingVariant, LinearVariant, whole

# A plain class at run time: with PEFT's abstract base in front, Python could not reassign `__class__` in `enable_allora`.
_LoraLayer = peft_layers.LoraLayer if TYPE_CHECKING else object


def check_base(base: nn.Module, name: str) -> None:
    """Raise `LayerError` where the rule is not defined on `base`, or not tested there."""
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
    """What our layer types share. An adapter with a stock `LoraConfig` is PEFT's own LoRA on them, DoRA and all."""

    variant_class: type[AlloraVariant]
    in_features: int
    out_features: int
    lora_A: Any  # ModuleDict by adapter name
    lora_B: Any

    def resolve_lora_variant(self, *, config: Any, **kwargs: Any) -> Any:
        if isinstance(config, AlloraConfig):
            return self.variant_class.of(config)
        return super().resolve_lora_variant(config=config, **kwargs)

    def update_layer(self, adapter_name: str, r: int, lora_alpha: int, config: Any, **kwargs: Any) -> None:
        if isinstance(config, AlloraConfig):
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
        state = {key: value for key, value in state.items() if key != "group"}  # a copy has siblings of its own
        super().__setstate__(state)  # pyright: ignore[reportAttributeAccessIssue] (nn.Module's)
        if any(getattr(v, "apply_to", None) == "update" for v in self.lora_variant.values()):
            update.track(self)  # a deep copy of a tracked layer is tracked

    def adapter_parameters(self, name: str) -> tuple[Tensor, Tensor]:
        """The parameters A and B of adapter `name`, as the optimizer holds them."""
        return self.lora_A[name].weight, self.lora_B[name].weight

    def factor_views(self, name: str) -> tuple[Tensor, Tensor]:
        """A as (..., r, n2) and B as (..., n1, r or r/groups), detached views into the parameters."""
        A, B = whole(*self.adapter_parameters(name))
        return A.detach().flatten(1), B.detach().flatten(1)

    def adapter_row_norms(self, name: str) -> Tensor:
        """||(BA)_i|| of adapter `name`: (..., n1), float32 or wider."""
        return row_norms(*self.factor_views(name))


class Linear(AlloraLayer, peft_layers.Linear):
    """nn.Linear and GPT-2's Conv1D, in place of `peft.tuners.lora.Linear`."""

    variant_class = LinearVariant

    group: siblings.Group | None = None

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        name = None if args or kwargs else self._fusible_adapter()
        if name is None:
            return super().forward(x, *args, **kwargs)
        # a tensor of inference mode does not count its changes, so none could be seen
        if self.group is None or not siblings.grouped() or x.is_inference():
            return self._compute(x, [(self, name)])[0]
        if self.group.is_first(self):
            together = self._together(name)
            outputs = self._compute(x, together)
            self.group.put(x, {id(layer): y for (layer, _), y in zip(together[1:], outputs[1:], strict=True)})
            return outputs[0]
        waiting = self.group.take(self, x)
        return self._compute(x, [(self, name)])[0] if waiting is None else waiting

    def _together(self, name: str) -> list[tuple[Linear, str]]:
        """This layer and those of its siblings that can be computed with it now, each with its adapter."""
        mine = self._key(name)
        together: list[tuple[Linear, str]] = [(self, name)]
        assert self.group is not None
        for layer in self.group.layers()[1:]:
            other = layer._fusible_adapter()
            # a shard (FSDP with units of single layers) is whole only while its own layer is called
            if other is not None and layer._key(other) == mine and not isinstance(layer.lora_A[other].weight, DTensor):
                together.append((layer, other))
        return together

    def _key(self, name: str) -> tuple[Any, ...]:
        """What layers have to have in common to be one node."""
        variant: LinearVariant = self.lora_variant[name]  # pyright: ignore[reportAssignmentType]
        return variant.gradient, isinstance(self.base_layer, Conv1D), self.training, self.lora_A[name].weight.device

    @staticmethod
    def _compute(x: Tensor, layers: list[tuple[Linear, str]]) -> tuple[Tensor, ...]:
        parts: list[LinearLayer] = []
        for layer, name in layers:
            base: Any = layer.base_layer
            variant: Any = layer.lora_variant[name]
            A, B = whole(*layer.adapter_parameters(name))
            parts.append(LinearLayer(base.weight, base.bias, A, B, variant.eta, layer.scaling[name]))
        first, name = layers[0]
        gradient = first.lora_variant[name].gradient  # pyright: ignore[reportAttributeAccessIssue]
        return lora_linears(x, parts, gradient=gradient, fan_in_fan_out=isinstance(first.base_layer, Conv1D))

    def _fusible_adapter(self) -> str | None:
        """The one active adapter, if the fused node computes all that is to be computed here."""
        if self._disable_adapters or self.merged_adapters or type(self.base_layer) not in (nn.Linear, Conv1D):
            return None
        if not siblings.fused():
            return None
        active = [name for name in self.active_adapters if name in self.lora_A]
        if len(active) != 1:
            return None
        name = active[0]
        variant = self.lora_variant.get(name)
        if not isinstance(variant, LinearVariant) or variant.member.output == "scaled":
            return None
        dropout = self.lora_dropout[name]
        if isinstance(dropout, nn.Dropout) and dropout.training and dropout.p > 0:
            return None
        # the fused node reads the frozen weight and does not call the layer: one with a hook must be called
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

    def adapter_parameters(self, name: str) -> tuple[Tensor, Tensor]:
        return self.lora_embedding_A[name], self.lora_embedding_B[name]


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

    def adapter_row_norms(self, name: str) -> Tensor:
        A, B = self.factor_views(name)
        return row_norms(A, expand_groups(B, int(self.get_base_layer().groups)))  # pyright: ignore[reportArgumentType]


class Conv1d(_Conv, peft_layers.Conv1d):
    """nn.Conv1d, in place of `peft.tuners.lora.Conv1d`."""


class Conv2d(_Conv, peft_layers.Conv2d):
    """nn.Conv2d, in place of `peft.tuners.lora.Conv2d`."""


class Conv3d(_Conv, peft_layers.Conv3d):
    """nn.Conv3d, in place of `peft.tuners.lora.Conv3d`."""


class ParamWrapper(AlloraLayer, peft_layers.ParamWrapper):
    """A parameter of a module, such as the stacked experts of a mixture-of-experts layer (`target_parameters`).

    The weight W_e + B_e A_e is formed before it is used, so the rule sits on the matrix BA itself (`ops/delta.py`).
    """

    variant_class = AlloraVariant

    def resolve_lora_variant(self, *, config: Any, **kwargs: Any) -> Any:
        if not isinstance(config, AlloraConfig):
            return super().resolve_lora_variant(config=config, **kwargs)
        if config.member.gradient == "entry" or config.member.output == "scaled":
            raise LayerError(
                "target_parameters: this method reads the adapter's output, and a parameter has none",
                remedy="target modules instead, or use the method allora",
            )
        return None  # PEFT's ParamWrapper refuses variants; ours is noted after its `update_layer`

    def update_layer(self, adapter_name: str, r: int, lora_alpha: int, config: Any, **kwargs: Any) -> None:
        super().update_layer(adapter_name, r, lora_alpha=lora_alpha, config=config, **kwargs)
        if isinstance(config, AlloraConfig):
            variant = AlloraVariant.of(config)
            self.lora_variant[adapter_name] = variant
            variant.init(self, adapter_name)

    def factor_views(self, name: str) -> tuple[Tensor, Tensor]:
        """A as (experts, r, n2) and B as (experts, n1, r), in PEFT's layout: A by expert then rank, B the reverse."""
        A, B = whole(*self.adapter_parameters(name))
        return self._by_expert(A.detach(), B.detach())

    def _by_expert(self, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
        return (
            A.view(self.num_experts, -1, A.shape[-1]),
            B.view(B.shape[0], -1, self.num_experts).permute(2, 0, 1),
        )

    def get_delta_weight(self, adapter_name: str, *args: Any, **kwargs: Any) -> Tensor:
        variant = self.lora_variant.get(adapter_name)
        if not isinstance(variant, AlloraVariant) or variant.gradient == "plain":
            return super().get_delta_weight(adapter_name, *args, **kwargs)
        A, B = self._by_expert(*whole(*self.adapter_parameters(adapter_name)))
        delta = lora_delta(A, B, eta=variant.eta, scaling=self.scaling[adapter_name])
        if self._param_ndim == 2:
            delta = delta.squeeze(0)
        elif not self._did_swap_in_out_features:  # stored as (experts, in, out)
            delta = delta.mT
        return delta.to(self.get_param().dtype)

    def get_delta_factors(self, adapter_name: str) -> tuple[Tensor, Tensor, float]:
        """PEFT multiplies the factors itself to save a temporary; that product would not know the rule."""
        delta = self.get_delta_weight(adapter_name)
        identity = torch.eye(delta.shape[-1], dtype=delta.dtype, device=delta.device).expand(self.num_experts, -1, -1)
        return delta, identity, 1.0
