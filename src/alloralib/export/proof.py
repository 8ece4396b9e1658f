"""The proof behind every export: what was written is read back, and must give the trained adapter's logits.

An export is written beside its final place, reloaded, compared, and only then moved there. It is an error, and leaves nothing
behind, if logits differ by more than the dtype explains, or if they equal the base model's (an adapter that was never trained,
or whose effect is lost in rounding).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor

from ..adapters.config import load_config
from ..adapters.rule import rule_of
from ..errors import MergeError

Batch = dict[str, Tensor]
Load = Callable[[], Any]

_ROUND_OFF = {torch.float32: 1e-4, torch.float64: 1e-8, torch.float16: 1e-2, torch.bfloat16: 6e-2}
"""Allowed difference by the dtype of the logits, relative to the largest logit (at least 1)."""
_LOST = 0.5
"""A difference of this fraction of the adapter's effect means that the adapter is missing from the result."""


@dataclass(frozen=True)
class Proof:
    """The result of the comparison.

    Attributes:
        prompts: number of batches compared.
        difference: largest difference of a logit between what was written and the trained adapter.
        tolerance: the difference that was allowed.
        change: largest difference of a logit between the model with BA and without it (what is trained whole stays).
    """

    prompts: int
    difference: float
    tolerance: float
    change: float


@dataclass(frozen=True)
class Trained:
    """The trained adapter's logits, with which every export is compared."""

    logits: list[Tensor]
    change: float
    dtype: torch.dtype

    @classmethod
    def of(cls, adapter: Path, load_base: Load, inputs: Sequence[Batch]) -> Trained:
        """Load the adapter and compute its logits.

        Raises:
            MergeError: BA changes no logit.
        """
        model = PeftModel.from_pretrained(load_base(), adapter).eval()
        expected = logits(model, inputs)
        for module in model.modules():  # not `disable_adapter`, which also takes away the head: a new one changes every logit
            if isinstance(module, LoraLayer):
                module.enable_adapters(False)
        untouched = logits(model, inputs)
        change = _largest(expected, untouched)
        if not change > 0:
            raise MergeError(
                "the adapter changes no logit: it was never trained (BA = 0), and the result would be the base model",
                where=str(adapter),
                remedy="train it first, or give the directory of the trained run",
            )
        return cls(expected, change, expected[0].dtype)

    def prove(self, found: Sequence[Tensor], where: str, dtype: torch.dtype | None = None) -> Proof:
        """Compare with the logits of what was read back.

        Args:
            found: those logits.
            where: what was written, for the message.
            dtype: the dtype its weights were stored in; by default the model's own.

        Raises:
            MergeError: they differ by more than rounding, or the adapter's effect is missing.
        """
        size = max(1.0, max(float(t.float().abs().max()) for t in self.logits))
        dtype = dtype or self.dtype
        tolerance = max(_ROUND_OFF[dtype], _ROUND_OFF[self.dtype]) * size
        difference = _largest(self.logits, found)
        if not difference <= tolerance:
            raise MergeError(
                f"logits differ from the trained adapter's by up to {difference:.3g}; {dtype} explains {tolerance:.3g}",
                where=where,
                remedy="nothing was written; report this with the method and the model's name",
            )
        if difference >= _LOST * self.change:
            raise MergeError(
                f"the adapter's effect ({self.change:.3g} on a logit) is lost: the result is {difference:.3g} away from it",
                where=where,
                remedy="nothing was written; merge in float32, or keep the adapter separate from the base (--format peft)",
            )
        return Proof(len(self.logits), difference, tolerance, self.change)


@torch.inference_mode()
def logits(model: Any, inputs: Sequence[Batch]) -> list[Tensor]:
    """The model's logits for every batch, on the CPU."""
    return [model(**{k: v.to(model.device) for k, v in batch.items()}).logits.cpu() for batch in inputs]


def _largest(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    return max(float((x.double() - y.double()).abs().max()) for x, y in zip(a, b, strict=True))


def check_mergeable(adapter: Path) -> LoraConfig:
    """The configuration of a saved adapter, refused if no weight computes what the adapter does.

    Raises:
        MergeError: an ASF-LoRA adapter.
    """
    config = load_config(adapter)
    rule = rule_of(config)
    if rule is not None:
        rule.check_mergeable(str(adapter))
    return config
