"""`train`: one run, from a configuration to an adapter with its record."""

from __future__ import annotations

import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml

from ..errors import Interrupted, TrainingError
from ..records import RECORD_FILE, RunRecord
from .baselines import against, compute_baselines
from .callbacks import StopOnSignal
from .checkpoints import steps_of
from .config import RunConfig
from .directory import RunDirectory
from .head import start_head
from .preflight import preflight
from .prepare import prepare
from .processes import is_main_process
from .results import Decorate, make_record, write_results
from .state import restore_weights, set_weights
from .trainer import RunTrainer

Show = Callable[[RunConfig, dict[str, Any]], None]


def train(config: RunConfig, *, resume: bool = False, decorate: Decorate | None = None, show: Show | None = None) -> RunRecord:
    """Fine-tune a model as a configuration says.

    The output directory appears when the run is complete: the adapter (stock LoRA files and our sidecar), the
    tokenizer, the answers on the test rows (`predictions.jsonl`) and `record.json`. Until then the run is in
    `NAME.unfinished`, from where `resume` continues, bit by bit as if the run had never been stopped.

    Args:
        config: what to do.
        resume: continue the unfinished run in `config.output_dir`, which must have the same configuration.
        decorate: called with the record and the directory before the run is moved into place, to add figures and pages.
        show: called with what the preflight found.

    Returns:
        the run's record.

    Raises:
        AlloraError: a setting, row, model or directory that cannot be used; nothing is written then.
        TrainingError: a NaN or infinite loss; the checkpoints before it are kept.
        Interrupted: a signal stopped the run; a checkpoint was written.
    """
    directory, main = RunDirectory(config.output_dir), is_main_process()
    if main and resume:
        directory.check_resumable()
    elif main:
        directory.check_free(config.overwrite)
    if resume and not directory.is_complete:  # a run that an earlier version started goes on with its own rows
        config = config.model_copy(update={"held_out": RunConfig.of_run(yaml.safe_load(directory.settings())).held_out})
    if resume and directory.is_complete:  # it was stopped just before it was moved into place
        record = RunRecord.read(directory.working / RECORD_FILE)
        if main:
            directory.publish()
        return record
    timer = _Timer()
    with ExitStack() as stack, StopOnSignal() as signals:
        if main:
            stack.enter_context(directory.open(config.to_yaml(), resume=resume))
        with timer("load"):
            run = prepare(config, directory, signals, resume=resume)
            trainer = RunTrainer(run)
        with timer("preflight"):
            found = preflight(trainer) | start_head(trainer)
        if show is not None and main:
            show(config, found)
        with timer("baselines"):
            baselines = compute_baselines(trainer)
        with timer("evaluate"):
            before = run.test(trainer.model, "before")
        _fit(trainer)
        with timer("evaluate"):
            after = run.test(trainer.model, "after")
        metrics = {"before": before.metrics, "after": after.metrics}
        record = make_record(trainer, metrics, against(baselines, after), found, timer.seconds)
        write_results(trainer, record, after.items, decorate)
    return record


def dry_run(config: RunConfig) -> dict[str, Any]:
    """Do everything up to the first step and measure one step; nothing is written.

    Returns:
        what `preflight` found, and how the head of a classifier would start.
    """
    RunDirectory(config.output_dir).check_free(config.overwrite)
    with tempfile.TemporaryDirectory() as scratch:  # for transformers' Trainer, which creates its directory
        trainer = RunTrainer(prepare(config, RunDirectory(Path(scratch) / "run"), StopOnSignal()))
        return preflight(trainer) | start_head(trainer)


def _fit(trainer: RunTrainer) -> None:
    """Train what is left to train, and leave the model with the weights that the run keeps."""
    run = trainer.run
    if run.state.finished:  # stopped after its last step
        assert run.checkpoint is not None
        restore_weights(trainer, run.checkpoint)
    else:
        try:
            trainer.fit()
        except TrainingError as error:
            steps = steps_of(run.directory.checkpoints)
            kept = f"the checkpoint of step {steps[-1]} is in {run.directory.checkpoints}" if steps else "no checkpoint yet"
            raise TrainingError(f"{error.what}; {kept}", where=error.where, remedy=error.remedy) from error
    if run.signals.stopping:
        number, remedy = run.signals.received, f"allora train --resume --output-dir {run.directory.final}"
        what = f"stopped by {signal.Signals(number).name} after step {trainer.state.global_step}"
        raise Interrupted(f"{what}; a checkpoint is in {run.directory.working}", remedy=remedy, signal=number)
    if run.state.best_step is not None:
        set_weights(trainer.model, run.state.best)


class _Timer:
    """Seconds of wall-clock time by phase; a phase that is entered twice adds up."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[phase] = round(self.seconds.get(phase, 0.0) + time.perf_counter() - start, 3)
