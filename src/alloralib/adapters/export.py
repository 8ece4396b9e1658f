"""Merging and exporting an adapter, with proof: what is written is read back and must give the trained adapter's logits.

Everything is written beside its place, reloaded, compared, and only then put there. A result that differs beyond what
the dtype explains is an error and leaves nothing behind, and so is one that equals the base: an adapter that was never
trained, or whose effect is lost in rounding.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel
from torch import Tensor

from ..errors import ConfigError, MergeError
from .config import AlloraConfig
from .files import load_config

Batch = dict[str, Tensor]
Load = Callable[[], Any]

_ROUND_OFF = {torch.float32: 1e-4, torch.float64: 1e-8, torch.float16: 1e-2, torch.bfloat16: 6e-2}
"""What may differ, by the dtype of the logits' model, relative to the largest logit (at least 1)."""
_LOST = 0.5
"""A difference of this share of what the adapter does means that the adapter did not come through."""


@dataclass(frozen=True)
class Proof:
    """What the comparison saw.

    Attributes:
        prompts: batches compared.
        difference: the largest difference of a logit between what was written and the trained adapter.
        tolerance: what was allowed.
        change: the largest difference of a logit between the trained adapter and the base.
    """

    prompts: int
    difference: float
    tolerance: float
    change: float


@dataclass(frozen=True)
class Trained:
    """The trained adapter's logits, which every export is held against."""

    logits: list[Tensor]
    change: float
    dtype: torch.dtype

    @classmethod
    def of(cls, adapter: Path, load_base: Load, inputs: Sequence[Batch]) -> Trained:
        """Load and ask the adapter.

        Raises:
            MergeError: it does nothing: its logits are the base's.
        """
        model = PeftModel.from_pretrained(load_base(), adapter).eval()
        expected = logits(model, inputs)
        with model.disable_adapter():
            untouched = logits(model, inputs)
        change = _largest(expected, untouched)
        if not change > 0:
            raise MergeError(
                "the adapter changes no logit: it was never trained (BA = 0), and the result would be the base model",
                where=str(adapter),
                remedy="train it first, or give the directory of the trained run",
            )
        return cls(expected, change, expected[0].dtype)

    def prove(self, found: Sequence[Tensor], what: str, dtype: torch.dtype | None = None) -> Proof:
        """Compare with what was read back, whose numbers went through `dtype` (by default the model's own).

        Raises:
            MergeError: they differ beyond round-off, or the adapter's effect is not there.
        """
        size = max(1.0, max(float(t.float().abs().max()) for t in self.logits))
        dtype = dtype or self.dtype
        tolerance = max(_ROUND_OFF[dtype], _ROUND_OFF[self.dtype]) * size
        difference = _largest(self.logits, found)
        if not difference <= tolerance:
            raise MergeError(
                f"logits differ from the trained adapter's by up to {difference:.3g}; {dtype} explains {tolerance:.3g}",
                where=what,
                remedy="nothing was written; report this with the method and the model's name",
            )
        if difference >= _LOST * self.change:
            raise MergeError(
                f"the adapter's effect ({self.change:.3g} on a logit) is lost: the result is {difference:.3g} away from it",
                where=what,
                remedy="nothing was written; merge in float32, or keep the adapter apart from the base (--format peft)",
            )
        return Proof(len(self.logits), difference, tolerance, self.change)


@torch.inference_mode()
def logits(model: Any, inputs: Sequence[Batch]) -> list[Tensor]:
    """The model's logits of every batch, on the CPU."""
    return [model(**{k: v.to(model.device) for k, v in batch.items()}).logits.cpu() for batch in inputs]


def _largest(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    return max(float((x.double() - y.double()).abs().max()) for x, y in zip(a, b, strict=True))


def check_mergeable(adapter: Path) -> LoraConfig:
    """The adapter's configuration.

    Raises:
        MergeError: ASF-LoRA, or an adapter that is no LoRA: no matrix added to the weight computes it.
    """
    config = load_config(adapter)
    if isinstance(config, AlloraConfig) and not config.member.mergeable:
        raise MergeError(
            "ASF-LoRA scales its output entry by entry by its size, so no matrix added to the weight computes it",
            where=str(adapter),
            remedy="use the adapter unmerged, through alloralib; or train with a mergeable method such as allora",
        )
    return config


@contextmanager
def staged(final: Path) -> Iterator[Path]:
    """A path beside `final` to write a file or a directory to; it is moved there at the end of a block without error.

    Raises:
        ConfigError: something is there already.
    """
    if final.is_file() or (final.is_dir() and any(final.iterdir())):
        raise ConfigError("is there already", where=str(final), remedy="give another name, or remove it first")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{final.name}.partial-", dir=final.parent))
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror}", where=str(final), remedy="give another place") from None
    try:
        yield scratch / final.name
        (scratch / final.name).rename(final)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def export_merged(adapter: Path, output: Path, *, load_base: Load, inputs: Sequence[Batch], tokenizer: Any = None) -> Proof:
    """Write base + BA as a model of its own: safetensors, configuration, and the tokenizer or processor if given.

    Args:
        adapter: a saved adapter.
        output: the directory to make.
        load_base: loads the frozen model, the same every time.
        inputs: what to compare logits on; arguments of the model's forward.

    Raises:
        MergeError: not mergeable, untrained, or the reloaded model does not compute the same.
    """
    check_mergeable(adapter)
    with staged(output) as path:
        trained = Trained.of(adapter, load_base, inputs)
        merged = merge(PeftModel.from_pretrained(load_base(), adapter).eval())
        merged.save_pretrained(path)
        if tokenizer is not None:
            tokenizer.save_pretrained(path)
        cls = type(merged)
        del merged
        again = cls.from_pretrained(path, dtype=trained.dtype).eval()
        return trained.prove(logits(again, inputs), str(output))


def merge(model: PeftModel) -> Any:
    """The base model with W + BA in place of W, without a trace of PEFT."""
    return cast(Any, model).merge_and_unload(safe_merge=True)


_PEFT_FILES = ("adapter_config.json", "adapter_model.safetensors", "allora_config.json", "README.md")


def export_peft(adapter: Path, output: Path, *, load_base: Load, inputs: Sequence[Batch], tokenizer: Any = None) -> Proof:
    """Write a clean adapter directory: PEFT's files, our sidecar, the card; proven by loading it as stock LoRA.

    Args, Raises: as `export_merged`.
    """
    check_mergeable(adapter)
    with staged(output) as path:
        trained = Trained.of(adapter, load_base, inputs)
        path.mkdir()
        copy_adapter(adapter, path)
        if tokenizer is not None:
            tokenizer.save_pretrained(path)
        return trained.prove(logits(load_stock(load_base(), path), inputs), str(output))


def copy_adapter(adapter: Path, path: Path) -> None:
    """Copy the files that make an adapter, and nothing else of a run."""
    for name in _PEFT_FILES:
        if (adapter / name).is_file():
            shutil.copyfile(adapter / name, path / name)


def load_stock(base: Any, path: Path) -> PeftModel:
    """The adapter as PEFT alone loads it: stock LoRA layers, whatever the sidecar says."""
    config = LoraConfig.from_pretrained(str(path))
    return PeftModel.from_pretrained(base, path, config=config).eval()
