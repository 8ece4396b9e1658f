"""The proof behind every export: what was written is read back, and must give the trained adapter's logits.

An export is written beside its final place, reloaded, compared, and only then moved there. It is an error, and leaves nothing
behind, if logits differ by more than the dtype explains, or if they equal the base model's (an adapter that was never trained,
or whose effect is lost in rounding).

What rounding to 16 bits explains is measured: the weights of the trained adapter's own model are moved by up to a unit in the
last place of the dtype on disk, three times over, and the logits must not be further off than twice what that changes.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.lora.layer import LoraLayer
from safetensors import safe_open
from torch import Tensor

from ..adapters.config import load_config
from ..adapters.rule import rule_of
from ..errors import AlloraError, MergeError, ModelError

Batch = dict[str, Tensor]
Load = Callable[[], Any]

_ROUND_OFF = {torch.float32: 1e-4, torch.float64: 1e-8, torch.float16: 1e-2, torch.bfloat16: 6e-2}
"""Allowed difference by the dtype of the logits, relative to the largest logit (at least 1)."""
_ROUNDINGS = 2
"""Allowed difference of a model rounded to 16 bits, relative to the measured effect of rounding."""
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
    """The trained adapter's logits, with which every export is compared.

    Attributes:
        logits: of every batch.
        change: largest difference to a logit of the base model.
        dtype: in which they were computed.
        rounding: largest change of a logit when weights are moved by the rounding of a 16-bit dtype; None if that was not
            measured.
    """

    logits: list[Tensor]
    change: float
    dtype: torch.dtype
    rounding: float | None = None

    @classmethod
    def of(cls, adapter: Path, load_base: Load, inputs: Sequence[Batch], dtype: torch.dtype | None = None) -> Trained:
        """Load the adapter and compute its logits.

        Args:
            dtype: to which its model will be rounded; by default it is not.

        Raises:
            MergeError: BA changes no logit.
        """
        model = load_adapter(load_base(), adapter)
        expected = logits(model, inputs)
        layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
        for layer in layers:  # not `disable_adapter`, which also takes away the head: a new one changes every logit
            layer.enable_adapters(False)
        change = _largest(expected, logits(model, inputs))
        for layer in layers:
            layer.enable_adapters(True)
        if not change > 0:
            raise MergeError(
                "the adapter changes no logit: it was never trained (BA = 0), and the result would be the base model",
                where=str(adapter),
                remedy="train it first, or give the directory of the trained run",
            )
        rounding = None
        if dtype in (torch.float16, torch.bfloat16):
            rounding = max(_largest(expected, logits(model, inputs)) for _ in _moved_by_rounding(model, dtype))
        return cls(expected, change, expected[0].dtype, rounding)

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
        if self.rounding is None:
            tolerance = max(_ROUND_OFF[dtype], _ROUND_OFF[self.dtype]) * size
        else:
            tolerance = _ROUND_OFF[torch.float32] * size + _ROUNDINGS * self.rounding
        difference = _largest(self.logits, found)
        if not difference <= tolerance:
            raise MergeError(
                f"logits differ from the trained adapter's by up to {difference:.3g}; rounding explains {tolerance:.3g}",
                where=where,
                remedy="nothing was written; report this with the method and the model's name",
            )
        if difference >= _LOST * self.change:
            raise MergeError(
                f"the adapter's effect ({self.change:.3g} on a logit) is lost: the result is {difference:.3g} away from it",
                where=where,
                remedy="nothing was written; merge in float32 (--dtype float32), or keep the adapter apart (--format peft)",
            )
        return Proof(len(self.logits), difference, tolerance, self.change)


@torch.inference_mode()
def logits(model: Any, inputs: Sequence[Batch]) -> list[Tensor]:
    """The model's logits for every batch, on the CPU."""
    return [model(**{k: v.to(model.device) for k, v in batch.items()}).logits.cpu() for batch in inputs]


def load_adapter(base: Any, path: Path, config: PeftConfig | None = None) -> PeftModel:
    """The base with the adapter, in evaluation mode.

    Args:
        config: by default that of the adapter.

    Raises:
        ModelError: they do not fit: a weight has another shape, or a module that only one of them has.
    """
    remedy = (
        "give the model that it was trained on (--model DIR); if tokens were added to that one, a model with as many "
        "(model.resize_token_embeddings)"
    )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Found missing adapter keys")  # refused below
            model = PeftModel.from_pretrained(base, path, config=config).eval()
    except AlloraError:
        raise
    except (RuntimeError, ValueError) as error:
        found = re.search(r"size mismatch for .*|Target modules? .* not found in the base model", str(error))
        if found is None:
            raise
        raise ModelError(f"the adapter does not fit the base: {found[0]}", where=str(path), remedy=remedy) from error
    with safe_open(path / "adapter_model.safetensors", framework="pt") as file:
        stored = set(file.keys())
    expected = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    odd = sorted((expected - stored) | (stored - expected - set(model.state_dict())))
    if odd:
        what = f"the adapter does not fit the base: {len(odd)} weights are in one of them only, the first is {odd[0]}"
        raise ModelError(what, where=str(path), remedy=remedy)
    return model


@torch.no_grad()
def _moved_by_rounding(model: PeftModel, dtype: torch.dtype) -> Iterator[None]:
    """Three models whose weights are rounded, in place: the adapted ones, whose sum with BA will be rounded, are moved by up to
    a unit in the last place each time; A and B stay.
    """
    generator = torch.Generator().manual_seed(0)
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    adapted = {id(p) for layer in layers for p in layer.get_base_layer().parameters()}
    factors = {id(p) for layer in layers for p in layer.parameters()} - adapted
    for _ in range(3):  # a single one can miss the few logits of a classifier
        for p in model.parameters():
            if id(p) in adapted:
                noise = torch.rand(p.shape, generator=generator) * 2 - 1
                p.copy_(p.float() * (1 + torch.finfo(dtype).eps * noise.to(p.device)))
            elif id(p) not in factors:
                p.copy_(p.to(dtype))
        yield


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
