"""One PEFT `LoraVariant` per layer type: what an ALLoRA adapter adds to a layer, and how it merges.

Foreign private API used here: `peft.tuners.lora.layer.LoraVariant` and the attributes of LoRA layers that PEFT's own
variants use (`lora_A`, `lora_B`, `lora_dropout`, `scaling`, `get_delta_weight`).
"""

# PEFT declares these methods static and calls them on an instance; ours need the instance.
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peft.tuners.lora.layer import LoraVariant
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..errors import LayerError, MergeError
from ..ops.adaptors import GradientAdaptor, Member
from ..ops.conv import lora_conv
from ..ops.embedding import lora_embedding
from ..ops.linear import lora_linear
from ..ops.output import scaled_output
from . import update
from .config import AlloraConfig


def whole(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """A and B as they are, if they are whole; a norm over a shard's columns of A is not the norm of a row of BA.

    FSDP2 shows a shard as a `DTensor`; FSDP1 and DeepSpeed's ZeRO-3 flatten it.

    Raises:
        LayerError: a factor is sharded at this moment.
    """
    for name, factor in (("A", A), ("B", B)):
        if isinstance(factor, DTensor) or factor.dim() < 2:
            raise LayerError(
                f"factor {name} is sharded while the rule reads it, and the norm of a row of BA needs the whole matrix",
                remedy="shard whole decoder layers, not the adapter's own modules: fully_shard(layer) for each, or "
                "accelerate with fsdp_version: 2 and TRANSFORMER_BASED_WRAP; outside the forward pass gather the weights "
                "first (fsdp_module.unshard() or full_tensor())",
            )
    return A, B


@dataclass
class AlloraVariant(LoraVariant):
    """A member of the family on one adapter of one layer.

    PEFT's variants are classes of static methods; an instance of this one also carries the adapter's settings.
    """

    member: Member
    eta: float
    apply_to: str

    @classmethod
    def of(cls, config: AlloraConfig) -> AlloraVariant:
        return cls(config.member, float(config.eta), config.apply_to)

    @property
    def gradient(self) -> GradientAdaptor:
        """What the backward pass does; natural where the optimizer's step is scaled instead."""
        return "plain" if self.apply_to == "update" else self.member.gradient

    def supports_lora_conversion(self) -> bool:
        return self.member.mergeable

    def init(self, module: Any, adapter_name: str, **kwargs: Any) -> None:
        if self.apply_to == "update":
            update.track(module)

    def merge_safe(self, module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        return orig_weight + self._delta(module, active_adapter, orig_weight)

    def merge_unsafe(self, module: Any, active_adapter: str, orig_weight: Tensor) -> None:
        orig_weight.data += self._delta(module, active_adapter, orig_weight)

    def unmerge(self, module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        return orig_weight.data - self._delta(module, active_adapter, orig_weight)

    def _delta(self, module: Any, active_adapter: str, weight: Tensor) -> Tensor:
        self.check_mergeable(active_adapter)
        return module.get_delta_weight(active_adapter).to(weight.dtype)

    def check_mergeable(self, active_adapter: str) -> None:
        """Raise `MergeError` where no weight computes what the adapter does."""
        if not self.member.mergeable:
            raise MergeError(
                f"adapter {active_adapter!r} is ASF-LoRA: its output depends on its size entry by entry, so no weight "
                "computes it",
                remedy="keep the adapter unmerged, or train with a mergeable method such as allora",
            )

    def finish(self, f: Tensor) -> Tensor:
        """The output adaptor."""
        return scaled_output(f, self.eta) if self.member.output == "scaled" else f


class LinearVariant(AlloraVariant):
    """nn.Linear and GPT-2's Conv1D."""

    def forward(self, module: Any, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any) -> Tensor:
        A, B = whole(*module.adapter_parameters(active_adapter))
        f = lora_linear(
            module.lora_dropout[active_adapter](x),
            None,
            None,
            A,
            B,
            gradient=self.gradient,
            eta=self.eta,
            scaling=module.scaling[active_adapter],
        )
        return result + self.finish(f)


class EmbeddingVariant(AlloraVariant):
    """nn.Embedding. Dropout has no place in front of A there, and PEFT's own embedding ignores it too."""

    def forward(self, module: Any, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any) -> Tensor:
        A, B = whole(*module.adapter_parameters(active_adapter))
        f = lora_embedding(
            x,
            A,
            B,
            padding_idx=module.get_base_layer().padding_idx,
            gradient=self.gradient,
            eta=self.eta,
            scaling=module.scaling[active_adapter],
        )
        f = self.finish(f)
        embed_scale = module._get_embed_scale()  # Gemma multiplies its embedding by sqrt(d), and so its adapter
        return result + (f if embed_scale is None else f * embed_scale.to(f.dtype))


class ConvVariant(AlloraVariant):
    """nn.Conv1d, nn.Conv2d, nn.Conv3d."""

    def forward(self, module: Any, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any) -> Tensor:
        lora_A: nn.Conv2d = module.lora_A[active_adapter]
        A, B = whole(*module.adapter_parameters(active_adapter))
        f = lora_conv(
            module.lora_dropout[active_adapter](x),
            A,
            B,
            stride=lora_A.stride,
            padding=module.zero_padding,
            groups=module.get_base_layer().groups,
            gradient=self.gradient,
            eta=self.eta,
            scaling=module.scaling[active_adapter],
        )
        return result + self.finish(f)
