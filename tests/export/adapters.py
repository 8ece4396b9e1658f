"""Trained adapters on disk, and the programs that should load them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from peft import get_peft_model

from alloralib import make_config

from ..adapters.models import llama, randomise

TOOLS = Path(__file__).parents[2] / ".tools"
CONVERTER = TOOLS / "llama-cpp-python" / "convert_lora_to_gguf.py"
needs_tools = pytest.mark.skipif(not (TOOLS / "vllm").is_dir(), reason="needs other programs' files: run `make tools` first")


def saved(
    tmp_path: Path, method: str = "allora", base: Any = llama, *, trained: bool = True, **settings: Any
) -> tuple[Any, Path]:
    """An adapted model, and the directory of its adapter."""
    settings = {"r": 4, "target_modules": ["q_proj", "k_proj", "down_proj"]} | settings
    model = get_peft_model(base(), make_config(method, **settings)).eval()
    if trained:
        randomise(model)
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    return model, tmp_path / "adapter"
