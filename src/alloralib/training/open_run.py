"""Open a run, or a saved adapter, to use it: what it was trained for, its base, classes and tokenizer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from ..adapters.sidecar import read_base
from ..data.forms import KINDS, LANGUAGE
from ..data.templates import set_date
from ..errors import ConfigError, did_you_mean
from ..export.inspect import read_config, read_weights
from ..records import RECORD_FILE, RunRecord
from .base_identity import BaseIdentity
from .config import RunConfig
from .descriptions import class_names, kind_of
from .limits import fit_tokenizer, read_limits
from .models import load_processor, locate_base
from .opened import OpenRun

_DTYPES = ("float32", "bfloat16")


def open_run(
    path: str | os.PathLike[str], *, model: str | None = None, task: str | None = None, dtype: str | None = None,
    allow_other_base: bool = False,
) -> OpenRun:  # fmt: skip
    """Open a run, or a saved adapter. Its model is loaded when it is first used.

    Args:
        path: directory of a run (with record.json) or of a saved adapter.
        model: the base model; by default that of the record or of adapter_config.json.
        task: what the adapter was trained for; by default as the record or the adapter says.
        dtype: of the base model's weights, float32 or bfloat16; by default the run's.
        allow_other_base: only warn if the base is not the one that the adapter was trained on. By default that is an error,
            when the model is loaded, wherever the base is and whatever its name.

    Raises:
        ConfigError: an unknown task or dtype, or the adapter does not say its task or its base model.
        ModelError: no adapter, a damaged adapter, or no such base model.
    """
    for name, value, known in (("task", task, KINDS), ("dtype", dtype, _DTYPES)):
        if value is not None and value not in known:
            raise ConfigError(f"unknown {name} {value!r}", remedy=did_you_mean(value, known))
    directory = Path(path)
    adapter = read_config(directory)
    weights = read_weights(directory)  # a damaged file is found before anything large is loaded
    config = record = None
    if (directory / RECORD_FILE).is_file():
        record = RunRecord.read(directory / RECORD_FILE)
        config = RunConfig.of_run(record.config, str(directory / RECORD_FILE))
    kind: Any = task or (config.kind if config else kind_of(directory, adapter))
    if kind is None:
        remedy = f"give its task (--task), one of {', '.join(KINDS)}"
        raise ConfigError("the adapter does not say what it was trained for", where=str(directory), remedy=remedy)
    base = model or (config.model if config else adapter.get("base_model_name_or_path"))
    if not base:
        raise ConfigError("the adapter does not name its base", where=str(directory), remedy="give the model (--model)")
    base_path = locate_base(base)
    labels = None
    if kind not in LANGUAGE:
        labels = (record and record.data.get("labels")) or class_names(directory, weights)
    own = any((directory / name).is_file() for name in ("tokenizer_config.json", "preprocessor_config.json"))
    processor = load_processor(str(directory) if own else base_path, kind)
    limits = read_limits(base_path, kind, processor)
    fit_tokenizer(processor, limits)
    if config is not None and config.chat_date is not None:
        set_date(processor, config.chat_date)
    weights_dtype = getattr(torch, dtype or (config.dtype if config else "float32"))
    entry = read_base(directory) if record is None else record.model
    identity = BaseIdentity.of(entry, str(directory))
    return OpenRun(directory, config, kind, base_path, labels, weights_dtype, processor, limits, identity, allow_other_base)
