"""The adapter as PEFT's own files, without the rest of the run."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel

from ..adapters.sidecar import SIDECAR
from ..files import staged
from ..records import MODEL_CONFIG
from .proof import Batch, Load, Proof, Trained, check_mergeable, logits

_FILES = ("adapter_config.json", "adapter_model.safetensors", SIDECAR, "README.md")


def export_peft(adapter: Path, output: Path, *, load_base: Load, inputs: Sequence[Batch], tokenizer: Any = None) -> Proof:
    """Write a clean adapter directory (PEFT's files, our `allora_config.json`, the card), proven by loading it as stock LoRA.

    Args, Raises: as `merged.export_merged`.
    """
    check_mergeable(adapter)
    with staged(output) as path:
        trained = Trained.of(adapter, load_base, inputs)
        path.mkdir()
        copy_adapter(adapter, path)
        if tokenizer is not None:
            tokenizer.save_pretrained(path)
        return trained.prove(logits(load_stock(load_base(), path), inputs), str(output))


def copy_adapter(adapter: Path, target: Path) -> None:
    """Copy the files that make up an adapter, and nothing else of a run."""
    for name in _FILES:
        if (adapter / name).is_file():
            shutil.copyfile(adapter / name, target / name)
    if (adapter / MODEL_CONFIG).is_dir():
        shutil.copytree(adapter / MODEL_CONFIG, target / MODEL_CONFIG)


def load_stock(base: Any, path: Path) -> PeftModel:
    """The adapter as PEFT alone loads it: stock LoRA layers, whatever `allora_config.json` says."""
    return PeftModel.from_pretrained(base, path, config=LoraConfig.from_pretrained(str(path))).eval()
