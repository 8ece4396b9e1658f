"""The adapter as PEFT's own files, without the rest of the run, for every program that reads LoRA.

An adapter that was trained beside changed weights (PiSSA) becomes plain LoRA of twice the rank on the base's own weights:
programs other than PEFT do not change the base, and would compute something else without a word.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from peft import LoraConfig, PeftModel, get_peft_model

from ..adapters.sidecar import SIDECAR
from ..adapters.stock import shortened
from ..files import staged
from ..records import MODEL_CONFIG
from .proof import Batch, Load, Proof, Trained, check_mergeable, load_adapter, logits
from .readers import changes_base

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def export_peft(adapter: Path, output: Path, *, load_base: Load, inputs: Sequence[Batch], tokenizer: Any = None) -> Proof:
    """Write a clean adapter directory (PEFT's files, our `allora_config.json`, the card), proven by loading it as stock LoRA.

    Args, Raises: as `merged.export_merged`.
    """
    check_mergeable(adapter)
    with staged(output) as path:
        trained = Trained.of(adapter, load_base, inputs)
        path.mkdir()
        copy_adapter(adapter, path, load_base)
        if tokenizer is not None:
            tokenizer.save_pretrained(path)
        return trained.prove(logits(load_stock(load_base(), path), inputs), str(output))


def copy_adapter(adapter: Path, target: Path, load_base: Load) -> None:
    """Copy the files that make up an adapter, and nothing else of a run. PiSSA becomes plain LoRA."""
    for name in (SIDECAR, "generation_config.json", "README.md"):
        if (adapter / name).is_file():
            shutil.copyfile(adapter / name, target / name)
    if (adapter / MODEL_CONFIG).is_dir():
        shutil.copytree(adapter / MODEL_CONFIG, target / MODEL_CONFIG)
    content = json.loads((adapter / CONFIG).read_text(encoding="utf-8"))
    if changes_base(content):
        content = _write_plain_lora(adapter, target, load_base)
    else:
        shutil.copyfile(adapter / WEIGHTS, target / WEIGHTS)
    (target / CONFIG).write_text(json.dumps(shortened(content), indent=2, sort_keys=True), encoding="utf-8")


def _write_plain_lora(adapter: Path, target: Path, load_base: Load) -> dict[str, Any]:
    """Write W' + BA, with W' = W - B0 A0, as W + [B, -B0] [A; A0], and return the configuration."""
    with tempfile.TemporaryDirectory() as scratch:
        start, plain = Path(scratch, "start"), Path(scratch, "plain")
        initial = get_peft_model(load_base(), LoraConfig.from_pretrained(str(adapter)))
        cast(Any, initial.peft_config["default"]).init_lora_weights = True
        initial.save_pretrained(str(start))
        trained = PeftModel.from_pretrained(load_base(), adapter)
        trained.save_pretrained(str(plain), path_initial_model_for_weight_conversion=str(start))
        shutil.copyfile(plain / WEIGHTS, target / WEIGHTS)
        return json.loads((plain / CONFIG).read_text(encoding="utf-8"))


def load_stock(base: Any, path: Path) -> PeftModel:
    """The adapter as PEFT alone loads it: stock LoRA layers, whatever `allora_config.json` says."""
    return load_adapter(base, path, LoraConfig.from_pretrained(str(path)))
