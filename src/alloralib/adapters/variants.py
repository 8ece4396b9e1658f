"""One PEFT `LoraVariant` per layer type: what an adapter with a rule adds to a layer, and how it merges.

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

from ..ops.conv import lora_conv
from ..ops.embedding import lora_embedding
from ..ops.linear import lora_linear
from ..ops.scale import scaled_output
from . import update
from .factors import unsharded_parameters
from .rule import Rule


@dataclass
class AlloraVariant(LoraVariant):
    """The rule of one adapter on one layer.

    PEFT's variants are classes of static methods; an instance of this one also carries the adapter's rule.
    """

    rule: Rule

    def supports_lora_conversion(self) -> bool:
        return not self.rule.scales_output

    def init(self, module: Any, adapter_name: str, **kwargs: Any) -> None:
        if self.rule.scales_step:
            update.track(module)

    def merge_safe(self, module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        return orig_weight + self._delta_weight(module, active_adapter, orig_weight)

    def merge_unsafe(self, module: Any, active_adapter: str, orig_weight: Tensor) -> None:
        orig_weight.data += self._delta_weight(module, active_adapter, orig_weight)

    def unmerge(self, module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        return orig_weight.data - self._delta_weight(module, active_adapter, orig_weight)

    def _delta_weight(self, module: Any, active_adapter: str, weight: Tensor) -> Tensor:
        self.rule.check_mergeable(f"adapter {active_adapter!r}")
        return module.get_delta_weight(active_adapter).to(weight.dtype)

    def _settings(self, module: Any, active_adapter: str) -> dict[str, Any]:
        """What every operation of `ops` takes."""
        return {"gradient": self.rule.gradient, "eta": self.rule.eta, "scaling": module.scaling[active_adapter]}

    def _output(self, f: Tensor) -> Tensor:
        """The output adaptor."""
        return scaled_output(f, self.rule.eta) if self.rule.scales_output else f


class LinearVariant(AlloraVariant):
    """nn.Linear and GPT-2's Conv1D."""

    def forward(self, module: Any, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any) -> Tensor:
        A, B = unsharded_parameters(module, active_adapter)
        dropped = module.lora_dropout[active_adapter](x)
        f = lora_linear(dropped, None, None, A, B, **self._settings(module, active_adapter))
        return result + self._output(f)


class EmbeddingVariant(AlloraVariant):
    """nn.Embedding. It has no dropout: its input is integer, and PEFT's own embedding layer ignores dropout, too."""

    def forward(self, module: Any, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any) -> Tensor:
        A, B = unsharded_parameters(module, active_adapter)
        padding_idx = module.get_base_layer().padding_idx
        f = self._output(lora_embedding(x, A, B, padding_idx=padding_idx, **self._settings(module, active_adapter)))
        embed_scale = module._get_embed_scale()  # Gemma multiplies its embedding, and so its adapter, by sqrt(d)
        return result + (f if embed_scale is None else f * embed_scale.to(f.dtype))


class ConvVariant(AlloraVariant):
    """nn.Conv1d, nn.Conv2d and nn.Conv3d."""

    def forward(self, module: Any, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any) -> Tensor:
        A, B = unsharded_parameters(module, active_adapter)
        lora_A: nn.Conv2d = module.lora_A[active_adapter]
        f = lora_conv(
            module.lora_dropout[active_adapter](x),
            A,
            B,
            stride=lora_A.stride,
            padding=module.zero_padding,
            groups=module.get_base_layer().groups,
            **self._settings(module, active_adapter),
        )
        return result + self._output(f)
