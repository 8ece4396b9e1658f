"""lm-evaluation-harness tasks on a model that is loaded already. An extra: `pip install alloralib[lm-eval]`.

Foreign API used here: `lm_eval.evaluator.simple_evaluate`, `lm_eval.models.huggingface.HFLM`, `lm_eval.tasks.TaskManager`.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError, DataError, did_you_mean
from .answers import answering


def check_harness(tasks: Sequence[str]) -> None:
    """Raise where the harness is not installed, or does not know a task.

    Args:
        tasks: names of tasks, groups or tags, or paths of task files (.yaml).

    Raises:
        ConfigError: with the nearest names.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError("lm-evaluation-harness is not installed", remedy="pip install alloralib[lm-eval]")
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    manager: Any = TaskManager()
    for task in tasks:
        if task.endswith((".yaml", ".yml")):
            if not Path(task).is_file():
                raise ConfigError("no such task file", where=task, remedy="give the path of a YAML file, or a task's name")
        elif task not in manager.all_tasks:
            raise ConfigError(
                f"lm-evaluation-harness has no task {task!r}",
                remedy=_nearest(task, manager.all_tasks),
            )


def _nearest(task: str, known: list[str]) -> str:
    remedy = did_you_mean(task, known)
    return remedy if len(remedy) < 400 else "`lm-eval ls tasks` lists them"


def run_harness(
    model: Any, tokenizer: Any, tasks: Sequence[str], *, batch_size: int = 8, limit: int | None = None
) -> dict[str, dict[str, float]]:
    """The harness's metrics of a model, base or adapted, as it stands.

    Args:
        tasks: as in `check_harness`.
        limit: rows per task; None takes all.

    Returns:
        task -> metric -> value; a standard error is beside its metric as `<metric>_stderr`.

    Raises:
        ConfigError: see `check_harness`.
        DataError: a task's data cannot be had.
    """
    check_harness(tasks)
    from lm_eval.evaluator import simple_evaluate  # pyright: ignore[reportMissingImports]
    from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    with answering(model):
        try:
            wrapped: Any = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
            found: Any = simple_evaluate(
                model=wrapped, tasks=list(tasks), limit=limit, bootstrap_iters=0, log_samples=False, verbosity=None
            )
        except (OSError, ConnectionError) as error:  # the hub's client raises kinds of these
            raise DataError(
                f"the data of {', '.join(tasks)} cannot be had ({type(error).__name__}: {str(error).splitlines()[0][:160]})",
                remedy="connect to the hub, or give a task file (.yaml) over local data",
            ) from error
    return {task: _numbers(values) for task, values in found["results"].items()}


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    """`acc,none` is the harness's name of a metric and the filter in front of it."""
    return {
        name.removesuffix(",none"): float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and "," in name
    }
