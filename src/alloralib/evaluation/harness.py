"""Tasks of lm-evaluation-harness on a loaded model. Needs the extra: `pip install alloralib[lm-eval]`.

API of lm_eval used here: `lm_eval.evaluator.simple_evaluate`, `lm_eval.models.huggingface.HFLM`, `lm_eval.tasks.TaskManager`.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError, DataError, did_you_mean
from .batching import evaluation_mode


def check_harness(tasks: Sequence[str]) -> None:
    """Check that the harness is installed and knows the tasks.

    Args:
        tasks: names of tasks, groups or tags, or paths of task files (.yaml).

    Raises:
        ConfigError: it is not installed, or does not know a task.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError("lm-evaluation-harness is not installed", remedy="pip install alloralib[lm-eval]")
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    manager: Any = TaskManager()
    for task in tasks:
        if task.endswith((".yaml", ".yml")):
            if not Path(task).is_file():
                raise ConfigError("no such task file", where=task, remedy="give the path of a YAML file, or the name of a task")
        elif task not in manager.all_tasks:
            remedy = did_you_mean(task, manager.all_tasks)
            remedy = remedy if len(remedy) < 400 else "list the tasks with `lm-eval ls tasks`"
            raise ConfigError(f"lm-evaluation-harness has no task {task!r}", remedy=remedy)


def run_harness(model: Any, tokenizer: Any, tasks: Sequence[str], *, batch_size: int = 8) -> dict[str, dict[str, float]]:
    """The harness's metrics of a model.

    Args:
        model: a causal language model, with or without an adapter.
        tasks: as `check_harness` takes them; call it first.

    Returns:
        task -> metric -> value. The standard error of a metric is under `<metric>_stderr`.

    Raises:
        DataError: the data of a task could not be loaded.
    """
    from lm_eval.evaluator import simple_evaluate  # pyright: ignore[reportMissingImports]
    from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    with evaluation_mode(model):
        try:
            wrapped: Any = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
            found: Any = simple_evaluate(model=wrapped, tasks=list(tasks), bootstrap_iters=0, log_samples=False, verbosity=None)
        except (OSError, ConnectionError) as error:  # base classes of the hub client's errors
            reason = f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"
            raise DataError(
                f"the data of {', '.join(tasks)} could not be loaded ({reason})",
                remedy="connect to the hub, or give a task file (.yaml) that reads local data",
            ) from error
    return {task: _numbers(values) for task, values in found["results"].items()}


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    """The harness names a metric with the filter that was applied before it, such as `acc,none`."""
    return {
        name.removesuffix(",none"): float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and "," in name
    }
