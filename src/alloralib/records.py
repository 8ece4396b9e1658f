"""A run's record: everything that is needed to judge it and to repeat it. Strict JSON; imports no torch."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from .errors import RecordError
from .files import finite, write_text

RECORD_FILE = "record.json"
MODEL_CONFIG = "model_config"
"""Folder beside a classifier's adapter with the `config.json` of its model: names of the classes, padding. As a file of the
adapter's own directory transformers would take it for a whole model."""
FORMAT = 2


@dataclass(frozen=True)
class RunRecord:
    """One training run.

    Attributes:
        config: the resolved run configuration, by field name.
        command: the command line that repeats the run.
        versions: of Python and the libraries.
        machine: processor and number of threads.
        model: name, class and size of the frozen model, and its identity: revision, weights, config (`training.base_identity`).
        data: source, sha256 and number of rows of each part, and rows that were removed.
        adapter: method, number of adapted modules and of trainable parameters.
        preflight: tokens per epoch, padding, estimated cost, warnings.
        metrics: `before` and `after` on the test rows.
        history: per logged step: step, loss, learning_rate, grad_norm, tokens (seen so far).
        validation: `history` (step and metrics) and `best_step`, whose weights were kept; None without validation rows.
        rule: per recorded step: step, and by layer the mean and largest row norm of BA, the smallest and mean scale.
        seconds: wall-clock by phase.
        baselines: metrics of simpler tools on the test rows, by name (`evaluation.baselines`), or of the base model with
            examples in its prompt (`evaluation.shots`).
    """

    config: dict[str, Any]
    command: str
    versions: dict[str, str]
    machine: dict[str, Any]
    model: dict[str, Any]
    data: dict[str, Any]
    adapter: dict[str, Any]
    preflight: dict[str, Any]
    metrics: dict[str, dict[str, float]]
    history: list[dict[str, float]]
    validation: dict[str, Any]
    rule: list[dict[str, Any]]
    seconds: dict[str, float]
    baselines: dict[str, dict[str, float]] = field(default_factory=dict[str, dict[str, float]])
    format: int = FORMAT

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write to a JSON file. NaN and infinity become null."""
        text = json.dumps(finite(asdict(self)), indent=1, sort_keys=True, allow_nan=False)
        write_text(Path(path), text + "\n")

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> RunRecord:
        """Read a record that `write` wrote.

        Raises:
            RecordError: the file is missing, not JSON, not a record, or of another version.
        """
        where = str(path)
        try:
            content: Any = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RecordError(f"not a record ({error})", where=where, remedy="give the directory of a finished run") from None
        known = {f.name for f in fields(cls)}
        if not isinstance(content, dict) or content.get("format") != FORMAT:  # pyright: ignore[reportUnknownMemberType]
            raise RecordError("not a record of this version", where=where, remedy="run it again, or update alloralib")
        keys: set[str] = set(content)  # pyright: ignore[reportUnknownArgumentType]
        if keys | {"baselines"} != known:  # which records of 0.2.0 do not have
            odd = ", ".join(sorted((keys | {"baselines"}) ^ known))
            raise RecordError(f"missing or unknown entries: {odd}", where=where, remedy="run it again")
        return cls(**content)  # pyright: ignore[reportUnknownArgumentType]
