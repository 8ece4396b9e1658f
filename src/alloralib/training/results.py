"""What a finished run leaves behind: its record, the adapter and the answers on the test rows."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import platform
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from .. import __version__
from ..adapters.methods import DEFAULT_ETA
from ..adapters.rule import rule_of
from ..adapters.sidecar import write_sidecar
from ..data.stops import stops
from ..evaluation.generation import set_end_tokens
from ..ops.family import METHODS
from ..records import MODEL_CONFIG, RECORD_FILE, RunRecord
from .config import RunConfig
from .models import BUNDLED_MODELS, public_name
from .prepare import Run, tables_of
from .processes import is_main_process
from .state import trained_weights
from .trainer import RunTrainer

_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")
PREDICTIONS_FILE = "predictions.jsonl"
_LIBRARIES = ("torch", "transformers", "peft", "trl", "accelerate", "datasets", "numpy")
Decorate = Callable[[RunRecord, Path], None]


def write_results(trainer: RunTrainer, record: RunRecord, answers: list[dict[str, Any]], decorate: Decorate | None) -> None:
    """Write the adapter, the answers and the record, and move the run into place. Every process has to call it.

    Args:
        answers: on the test rows.
        decorate: adds figures and pages to the directory.
    """
    weights = trained_weights(trainer.model)  # sharded weights are gathered by all processes
    if not is_main_process():
        return
    run = trainer.run
    working = run.directory.working
    model = trainer.accelerator.unwrap_model(trainer.model)  # pyright: ignore[reportAttributeAccessIssue]
    # PEFT wants the buffers of what is trained whole, too
    weights |= {name.replace("_orig_mod.", ""): b for name, b in model.named_buffers() if ".modules_to_save." in name}
    # an adapted embedding is frozen like any other weight, but PEFT would save it too
    model.save_pretrained(working, state_dict=weights, save_embedding_layers=False)
    write_sidecar(rule_of(model.peft_config["default"]), working, asdict(run.state.base) if run.state.base else None)
    if run.labels is not None:
        base = model.get_base_model()
        base.config.architectures = [type(base).__name__]
        base.config.save_pretrained(working / MODEL_CONFIG)
    run.processor.save_pretrained(working)
    if run.config.is_language:
        base = model.get_base_model()
        set_end_tokens(base, run.processor, run.config.kind)
        GenerationConfig(**{name: getattr(base.generation_config, name) for name in _SPECIAL}).save_pretrained(working)
    with (working / PREDICTIONS_FILE).open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers)
    if decorate is not None:
        decorate(record, working)
    record.write(working / RECORD_FILE)  # the last file: once it is there, the run is complete
    run.directory.publish()


def make_record(
    trainer: RunTrainer, metrics: dict[str, dict[str, float]], baselines: dict[str, dict[str, float]], found: dict[str, Any],
    seconds: dict[str, float],
) -> RunRecord:  # fmt: skip
    """The record of a run.

    Args:
        metrics: on the test rows, before and after training.
        baselines: metrics of simpler tools on the test rows, by name.
        found: by the preflight.
        seconds: by phase.
    """
    run, config = trainer.run, trainer.run.config
    data: dict[str, Any] = {
        name: {"source": table.source, "sha256": table.sha256, "rows": len(table)}
        for name, table in tables_of(run.parts).items()
    }
    data["removed"] = run.parts.removed
    if run.labels is not None:
        data["labels"] = run.labels
    return RunRecord(
        config=config.model_dump(exclude_none=True) | {"max_length": run.max_length},
        command=config.command(),
        versions={"alloralib": __version__, "python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in _LIBRARIES if importlib.util.find_spec(name)},
        machine={
            "processor": platform.machine(), "threads": torch.get_num_threads(), "device": str(trainer.args.device),
            "processes": trainer.args.world_size,
        },
        model={
            "name": config.model, "base": public_name(config.model), "parameters": run.base_parameters,
            "class": type(run.model.get_base_model()).__name__,
        } | _bundled(config.model) | _describe_ends(run) | (asdict(run.state.base) if run.state.base else {}),
        data=data,
        adapter=_describe_adapter(config, found["adapter"]),
        preflight={key: found[key] for key in ("data", "cost", "warnings", "head") if key in found},
        metrics=metrics,
        history=run.state.history,
        validation={"history": run.state.validation, "best_step": run.state.best_step},
        rule=run.state.rule,
        seconds=seconds | {"train": round(run.state.seconds, 3)},
        baselines=baselines,
    )  # fmt: skip


def _bundled(name: str) -> dict[str, str]:
    if name not in BUNDLED_MODELS:
        return {}
    bundled = BUNDLED_MODELS[name]
    return {"package": bundled.package, "file": bundled.path}


def _describe_ends(run: Run) -> dict[str, Any]:
    """What ends an answer: tokens, or a text for which there is no token."""
    if not run.config.is_language:
        return {}
    tokens, text = stops(run.processor, run.config.kind)
    return {"end_tokens": {run.processor.convert_ids_to_tokens(token): token for token in tokens}, "end_text": text}


def _describe_adapter(config: RunConfig, found: dict[str, Any]) -> dict[str, Any]:
    values = {"eta": DEFAULT_ETA if config.eta is None else config.eta, "apply_to": config.apply_to or "gradient"}
    settings = {name: value for name, value in values.items() if name in METHODS[config.method].settings}
    size = {"modules": found["modules"], "trained_parameters": found["parameters"], "whole": found["whole"]}
    return {"method": config.method, "r": config.r, **settings, **size}
