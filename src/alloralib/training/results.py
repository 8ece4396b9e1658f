"""What a finished run leaves behind: its record, the adapter and the answers on the test rows."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..adapters.methods import DEFAULT_ETA
from ..ops.family import METHODS
from ..records import RECORD_FILE, RunRecord
from .config import RunConfig
from .prepare import tables_of
from .processes import is_main_process
from .state import trained_weights
from .trainer import RunTrainer

PREDICTIONS_FILE = "predictions.jsonl"
_LIBRARIES = ("torch", "transformers", "peft", "trl", "accelerate", "datasets", "numpy", "alloralib")
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
    # an adapted embedding is frozen like any other weight, but PEFT would save it too
    model.save_pretrained(working, state_dict=weights, save_embedding_layers=False)
    run.processor.save_pretrained(working)
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
        config=config.model_dump(exclude_none=True),
        command=config.command(),
        versions={"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in _LIBRARIES if importlib.util.find_spec(name)},
        machine={
            "processor": platform.machine(), "threads": torch.get_num_threads(), "device": str(trainer.args.device),
            "processes": trainer.args.world_size,
        },
        model={
            "name": config.model, "parameters": run.base_parameters, "class": type(run.model.get_base_model()).__name__
        },
        data=data,
        adapter=_describe_adapter(config, found["adapter"]),
        preflight={key: found[key] for key in ("data", "cost", "warnings")},
        metrics=metrics,
        history=run.state.history,
        validation={"history": run.state.validation, "best_step": run.state.best_step},
        rule=run.state.rule,
        seconds=seconds | {"train": round(run.state.seconds, 3)},
        baselines=baselines,
    )  # fmt: skip


def _describe_adapter(config: RunConfig, found: dict[str, Any]) -> dict[str, Any]:
    values = {"eta": DEFAULT_ETA if config.eta is None else config.eta, "apply_to": config.apply_to or "gradient"}
    settings = {name: value for name, value in values.items() if name in METHODS[config.method].settings}
    size = {"modules": found["modules"], "trained_parameters": found["parameters"]}
    return {"method": config.method, "r": config.r, **settings, **size}
