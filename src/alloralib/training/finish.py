"""The end of a run: its record, its files, its place."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..adapters.methods import DEFAULT_ETA
from ..data.parts import Parts
from ..data.table import Table
from ..ops.family import METHODS
from ..records import RECORD_FILE, RunRecord
from .config import RunConfig
from .scores import Scorer
from .state import RunState, trained_weights
from .workspace import Workspace

PREDICTIONS_FILE = "predictions.jsonl"
_LIBRARIES = ("torch", "transformers", "peft", "trl", "accelerate", "datasets", "numpy", "alloralib")
Decorate = Callable[[RunRecord, Path], None]


@dataclass
class Prepared:
    """Everything a run needs, before its first step."""

    config: RunConfig
    processor: Any
    parts: Parts
    scorer: Scorer
    trainer: Any
    run: RunState
    frozen: int  # parameters of the model without the adapter
    labels: list[str] | None


def finish(
    prepared: Prepared, record: RunRecord, items: list[dict[str, Any]], space: Workspace, *, first: bool,
    decorate: Decorate | None,
) -> None:  # fmt: skip
    """Write the adapter, the answers on the test rows and the record, and put the run in its place.

    Args:
        items: the answers.
        first: whether this process writes; every one has to call.
        decorate: adds pictures and pages.
    """
    weights = trained_weights(prepared.trainer.model)  # every process takes part where they are sharded
    if not first:
        return
    model = prepared.trainer.accelerator.unwrap_model(prepared.trainer.model)
    # an adapted embedding is frozen as every base is; PEFT would look for it among the weights and save it too
    model.save_pretrained(space.working, state_dict=weights, save_embedding_layers=False)
    prepared.processor.save_pretrained(space.working)
    with (space.working / PREDICTIONS_FILE).open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(item, ensure_ascii=False) + "\n" for item in items)
    if decorate is not None:
        decorate(record, space.working)
    record.write(space.working / RECORD_FILE)  # the last file: where it stands, the run is complete
    space.publish()


def make_record(
    prepared: Prepared, metrics: dict[str, dict[str, float]], found: dict[str, Any], seconds: dict[str, float]
) -> RunRecord:
    """The record of a finished run."""
    config, trainer, run, parts = prepared.config, prepared.trainer, prepared.run, prepared.parts
    data: dict[str, Any] = {
        name: {"source": table.source, "sha256": table.sha256, "rows": len(table)} for name, table in tables_of(parts).items()
    }
    data["removed"] = parts.removed
    if prepared.labels is not None:
        data |= {"labels": prepared.labels, "majority": prepared.scorer.majority}
    base = trainer.accelerator.unwrap_model(trainer.model).get_base_model()
    return RunRecord(
        config=config.model_dump(exclude_none=True),
        command=config.command(),
        versions={"python": platform.python_version()} | {lib: importlib.metadata.version(lib) for lib in _LIBRARIES},
        machine={
            "processor": platform.machine(), "threads": torch.get_num_threads(), "device": str(trainer.args.device),
            "processes": trainer.args.world_size,
        },
        model={"name": config.model, "parameters": prepared.frozen, "class": type(base).__name__},
        data=data,
        adapter=_describe_adapter(config, found["adapter"]),
        preflight={key: found[key] for key in ("data", "cost", "warnings")},
        metrics=metrics,
        history=run.history,
        validation={"history": run.validation, "best_step": run.best_step},
        rule=run.rule,
        seconds=seconds | {"train": round(run.seconds, 3)},
    )  # fmt: skip


def tables_of(parts: Parts) -> dict[str, Table]:
    """The parts that are there, by name."""
    tables = {"train": parts.train, "validation": parts.validation, "test": parts.test}
    return {name: table for name, table in tables.items() if table is not None}


def _describe_adapter(config: RunConfig, found: dict[str, Any]) -> dict[str, Any]:
    knobs: dict[str, Any] = {}
    if "eta" in METHODS[config.method].settings:
        knobs["eta"] = config.eta or DEFAULT_ETA
    if "apply_to" in METHODS[config.method].settings:
        knobs["apply_to"] = config.apply_to or "gradient"
    return {
        "method": config.method,
        "r": config.r,
        **knobs,
        "modules": found["modules"],
        "trained_parameters": found["parameters"],
    }
