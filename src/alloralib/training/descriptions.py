"""What an adapter's directory says of its model, if there is no record: the task, and the names of the classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from ..adapters.targets import TEXT_HEADS
from ..data.forms import Kind
from ..errors import ConfigError, ModelError
from ..records import MODEL_CONFIG

_KIND_OF: dict[str, Kind] = {"SEQ_CLS": "classification", "CAUSAL_LM": "causal-lm"}


def kind_of(directory: Path, adapter: dict[str, Any]) -> Kind | None:
    """What the adapter was trained for; None if nothing says so.

    Args:
        adapter: the content of its `adapter_config.json`. PEFT has no task for classifiers of images.
    """
    if any(name.endswith("ForImageClassification") for name in _model_config(directory).get("architectures") or ()):
        return "image-classification"
    return _KIND_OF.get(adapter.get("task_type") or "")


def class_names(directory: Path, weights: dict[str, Tensor]) -> list[str]:
    """The classes of a classifier in the order of the logits; LABEL_0, LABEL_1, ... if only their number is known.

    Args:
        weights: of the adapter. The last layer of what is called classifier or score gives the number.

    Raises:
        ConfigError: not even their number is known.
        ModelError: a damaged file.
    """
    names = _model_config(directory).get("id2label") or {}
    if names:
        return [names[index] for index in sorted(names, key=int)]
    whole = {key: tensor for key, tensor in weights.items() if key.endswith("weight") and ".lora_" not in key}
    heads = [tensor for key, tensor in whole.items() if set(TEXT_HEADS) & set(key.split("."))] or list(whole.values())
    if not heads:
        what = "the adapter has no head, so the number of classes is unknown"
        raise ConfigError(what, where=str(directory), remedy="open the directory of the run")
    return [f"LABEL_{i}" for i in range(heads[-1].shape[0])]


def _model_config(directory: Path) -> dict[str, Any]:
    """The classifier's configuration; empty for language models and for adapters of other tools."""
    file = directory / MODEL_CONFIG / "config.json"
    if not file.is_file():
        return {}
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ModelError(f"damaged ({error})", where=str(file), remedy="restore the file, or delete it") from None
