"""vLLM's own checks of an adapter, run from its source files without vLLM: `peft_helper.py`, `utils.py`, `lora_model.py`.

Whatever those files import of vLLM besides each other is a stand-in; none of it takes part in the checks.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

from .adapters import TOOLS


class _StandIn(ModuleType):
    """A module that has every name."""

    def __getattr__(self, name: str) -> Any:
        return MagicMock(name=name)


def _load(monkeypatch: Any) -> dict[str, Any]:
    for name in (
        "vllm", "vllm.envs", "vllm.logger", "vllm.config", "vllm.config.lora", "vllm.lora", "vllm.lora.layers",
        "vllm.model_executor", "vllm.model_executor.custom_op", "vllm.model_executor.layers",
        "vllm.model_executor.layers.fused_moe", "vllm.model_executor.layers.linear",
        "vllm.model_executor.layers.vocab_parallel_embedding", "vllm.model_executor.models",
        "vllm.model_executor.models.utils", "vllm.model_executor.utils", "vllm.transformers_utils",
        "vllm.transformers_utils.repo_utils", "vllm.utils", "vllm.utils.torch_utils",
    ):  # fmt: skip
        module = _StandIn(name)
        module.__path__ = []
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules["vllm.utils.torch_utils"].PIN_MEMORY = False  # pyright: ignore[reportAttributeAccessIssue]
    loaded: dict[str, Any] = {}
    for name in ("peft_helper", "utils", "lora_weights", "lora_model"):
        spec = importlib.util.spec_from_file_location(f"vllm.lora.{name}", TOOLS / "vllm" / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        loaded[name] = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, f"vllm.lora.{name}", loaded[name])
        spec.loader.exec_module(loaded[name])
    return loaded


def check(monkeypatch: Any, adapter: Path, modules: set[str], max_lora_rank: int = 16) -> Any:
    """What vLLM makes of the adapter; raises what it raises.

    Args:
        modules: names of the model's layers that vLLM can adapt.
        max_lora_rank: as in vLLM's `--max-lora-rank`.
    """
    vllm = _load(monkeypatch)
    helper = vllm["peft_helper"].PEFTHelper.from_local_dir(str(adapter), None)
    limits = MagicMock()
    limits.max_lora_rank = max_lora_rank
    helper.validate_legal(limits)
    return vllm["lora_model"].LoRAModel.from_local_checkpoint(
        str(adapter), modules, helper, lora_model_id=1, device="cpu", dtype=None
    )
