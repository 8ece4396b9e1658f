"""`train`: one run, from a configuration to an adapter with its record."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import TaskType, get_peft_model

from ..adapters.elementwise import fuse_elementwise
from ..adapters.methods import make_config
from ..adapters.monitor import layer_states, summary
from ..adapters.targets import check_targets
from ..data.examples import build_examples, collator
from ..data.parts import load_parts
from ..data.table import Table
from ..data.tokens import TokenCache
from ..errors import ConfigError, DataError, Interrupted, TrainingError
from ..records import RECORD_FILE, RunRecord
from .batches import lengths_of
from .callbacks import Cadence, Interruption, Progress
from .checkpoints import latest, steps_of
from .compiling import check_compiling, compile_blocks
from .config import DEFAULT_TEST_SHARE, RunConfig
from .finish import Decorate, Prepared, finish, make_record, tables_of
from .models import load_model, load_processor, locate
from .preflight import preflight
from .processes import all_agree, is_first
from .scores import Scorer, describe_labels
from .state import RunState, set_weights
from .trainers import check_optimizer, make_trainer, tokenize
from .workspace import Workspace

_TASK_TYPES = {"classification": TaskType.SEQ_CLS, "image-classification": None}
# PEFT knows the new head of a text classifier by the task type; transformers calls that of an image classifier so
_IMAGE_HEAD = {"modules_to_save": ["classifier"], "exclude_modules": ["classifier"]}
Show = Callable[[RunConfig, dict[str, Any]], None]


def train(config: RunConfig, *, resume: bool = False, decorate: Decorate | None = None, show: Show | None = None) -> RunRecord:
    """Fine-tune as the configuration says.

    The output directory appears when the run is complete: the adapter (stock LoRA files and our sidecar), the
    tokenizer, the answers on the test rows and `record.json`. Until then the run is in `NAME.unfinished`, from which
    `resume` goes on, bit by bit as if it had never been stopped.

    Args:
        config: what to do.
        resume: go on with the unfinished run of that configuration.
        decorate: called with the record and the directory before it is put in place, to add pictures and pages.
        show: told what the preflight found.

    Raises:
        AlloraError: a setting, a row, a model or a directory that does not do; nothing is written then.
        Interrupted: a signal ended the run early; a checkpoint is there.
    """
    space = Workspace(config.output_dir)
    main = is_first()
    if main:
        space.check_resumable() if resume else space.check_free(config.overwrite)
    if resume and space.complete:
        record = RunRecord.read(space.working / RECORD_FILE)
        if main:
            space.publish()
        return record
    clock = _Clock()
    with ExitStack() as stack, Interruption() as interruption:
        if main:
            stack.enter_context(space.open(config.to_yaml(), resume=resume))
        with clock("load"):
            prepared = prepare(config, space, interruption)
        trainer, run = prepared.trainer, prepared.run
        trainer.validate = None if prepared.parts.validation is None else prepared.scorer.validate
        with clock("preflight"):
            found = _look(prepared)
        if show is not None and main:
            show(config, found)
        with clock("evaluate"):
            before = prepared.scorer.test("before")
        checkpoint = latest(space.checkpoints) if resume else None
        if checkpoint is not None:
            run.restore(checkpoint)
        if not run.finished:
            try:
                trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
            except TrainingError as error:
                raise _with_checkpoint(error, space) from error
            if trainer.interrupted:
                raise _interrupted(interruption.received, space, trainer.state.global_step)
        elif checkpoint is not None:
            set_weights(trainer.model, _adapter_of(checkpoint))
        if run.best_step is not None:
            set_weights(trainer.model, run.best)
        with clock("evaluate"):
            after = prepared.scorer.test("after")
        record = make_record(prepared, {"before": before.metrics, "after": after.metrics}, found, clock.seconds)
        finish(prepared, record, after.items, space, first=main, decorate=decorate)
    return record


def dry_run(config: RunConfig) -> dict[str, Any]:
    """Everything up to the first step, with one step measured; nothing is written.

    Returns:
        what `preflight.preflight` found.
    """
    Workspace(config.output_dir).check_free(config.overwrite)
    with tempfile.TemporaryDirectory() as scratch:  # the trainer makes its directory as soon as it is built
        prepared = prepare(config, Workspace(scratch), Interruption())
        return _look(prepared)


def prepare(config: RunConfig, space: Workspace, interruption: Interruption) -> Prepared:
    """Rows, model, adapter and trainer of a run.

    Raises:
        AlloraError: whatever does not do, explained.
    """
    _check_machine(config)
    adapter_config = _adapter_config(config)
    path = locate(config.model)
    processor = load_processor(path, config.kind)
    parts = load_parts(
        config.kind, config.columns, data=config.data, data_dir=config.data_dir,
        validation_data=config.validation_data, validation_share=config.validation_share,
        test_data=config.test_data, test_share=config.test_share, default_test_share=DEFAULT_TEST_SHARE,
        train_rows=config.train_rows, validation_rows=config.validation_rows, test_rows=config.test_rows,
        data_seed=config.data_seed, evaluation_seed=config.evaluation_seed,
    )  # fmt: skip
    if parts.validation is None and (config.patience or config.evaluate_every or config.validation_rows):
        raise ConfigError(
            "patience, evaluate_every and validation_rows need validation rows, and there are none",
            where=config.data, remedy="give --validation-share or --validation-data",
        )  # fmt: skip
    labels = None if config.is_language else describe_labels(config, parts)
    tables, examples, new = tables_of(parts), {}, []
    cache = TokenCache(config.kind, config.columns, processor, names=labels, max_length=config.max_length)
    for name, table in tables.items():
        examples[name] = cache.read(table)
        if not all_agree(examples[name] is not None):
            new.append(name)
            examples[name] = build_examples(
                config.kind, table, config.columns, processor=processor, names=labels, max_length=config.max_length
            )
    torch.manual_seed(config.adapter_seed)  # for the new head of a classifier
    model = load_model(
        path, task=config.kind, labels=labels, dtype=getattr(torch, config.dtype),
        pad_token_id=getattr(processor, "pad_token_id", None),
    )  # fmt: skip
    frozen = sum(p.numel() for p in model.parameters())
    check_targets(model, config.target_modules)
    torch.manual_seed(config.adapter_seed)
    model = get_peft_model(model, adapter_config)
    compile_blocks(model) if config.compile else fuse_elementwise(model)
    digests = {name: _digest(table) for name, table in tables.items()}
    run = RunState(space.checkpoints, digests)
    callbacks = [Progress(run, is_first()), Cadence(config, run, parts.validation is not None), interruption]
    collate = None if config.is_language else collator(config.kind, processor)
    trainer = make_trainer(config, model, processor, examples["train"], collate, str(space.working), callbacks)
    interruption.trainer = trainer
    _check_kept(parts.train, trainer.train_dataset, config)
    examples["train"] = trainer.train_dataset
    for name in new:
        if "labels" not in examples[name].column_names:
            examples[name] = tokenize(trainer, processor, examples[name], name, max_length=config.max_length)
        cache.write(tables[name], examples[name])
    trainer.run, trainer.where = run, parts.train.where
    trainer.rule_metrics = lambda: _look_at_rule(trainer, run, bool(config.report_to))
    scorer = Scorer(config, trainer, processor, parts, examples, labels)
    return Prepared(config, processor, parts, scorer, trainer, run, frozen, labels)


def _check_machine(config: RunConfig) -> None:
    check_optimizer(config)
    if config.compile:
        check_compiling()
    if config.dtype == "float16" and not torch.cuda.is_available():
        raise ConfigError(
            "float16 on a CPU: it is slow there, and gradients underflow",
            where="--dtype", remedy="use float32, or bfloat16 to save memory",
        )  # fmt: skip
    for reporter in config.report_to:
        if importlib.util.find_spec(reporter) is None:
            raise ConfigError(f"{reporter} is not installed", where="--report-to", remedy=f"pip install {reporter}")


def _adapter_config(config: RunConfig) -> Any:
    return make_config(
        config.method,
        r=config.r,
        eta=config.eta,
        dropout=config.dropout,
        apply_to=config.apply_to,
        target_modules=config.target_modules,
        task_type=_TASK_TYPES.get(config.kind, TaskType.CAUSAL_LM),
        **(_IMAGE_HEAD if config.kind == "image-classification" else {}),
    )


def _digest(table: Table) -> str:
    """Of the rows that are used, so that a changed file, share or seed is noticed."""
    rows = json.dumps([table.sha256, table.lines, table.rows, len(table)])
    return hashlib.sha256(rows.encode()).hexdigest()


def _check_kept(table: Table, dataset: Any, config: RunConfig) -> None:
    """TRL leaves out, without a word, rows of which nothing is left to learn once they are cut."""
    lost = sorted(set(range(len(table))) - set(dataset["row"]))
    if lost:
        raise DataError(
            f"max_length={config.max_length} cuts off all that is to be learnt in {len(lost)} rows",
            where=table.where(lost[0]),
            remedy="raise --max-length, or remove those rows",
        )


def _look(prepared: Prepared) -> dict[str, Any]:
    config, trainer, processor = prepared.config, prepared.trainer, prepared.processor

    def uncut(rows: list[int]) -> list[int]:
        table = prepared.parts.train.take(rows)
        examples = build_examples(config.kind, table, config.columns, processor=processor, names=prepared.labels)
        if config.is_language:
            examples = tokenize(trainer, processor, examples, "uncut", max_length=None)
        return lengths_of(examples)

    return preflight(config, trainer, processor, _steps(trainer), uncut)


def _steps(trainer: Any) -> int:
    loader = trainer.get_train_dataloader()
    return int(trainer.set_initial_training_values(trainer.args, loader)[-1])


def _look_at_rule(trainer: Any, run: RunState, per_layer: bool) -> dict[str, float]:
    states = layer_states(trainer.model)
    rate = trainer.state.log_history[-1].get("learning_rate") if trainer.state.log_history else None
    rate = trainer.optimizer.param_groups[0]["lr"] if rate is None else rate
    run.rule.append({"step": trainer.state.global_step, "layers": {name: list(state) for name, state in states.items()}})
    numbers = summary(states, rate)
    if per_layer:
        for name, state in states.items():
            named = zip(state._fields, state, strict=True)
            numbers |= {f"layers/{name}/{key}": value for key, value in named if value is not None}
    return numbers


def _adapter_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    from .checkpoints import read_checkpoint

    return read_checkpoint(checkpoint)[0]["adapter"]


def _with_checkpoint(error: TrainingError, space: Workspace) -> TrainingError:
    steps = steps_of(space.checkpoints)
    kept = f"; the checkpoint of step {steps[-1]} is in {space.checkpoints}" if steps else "; there was no checkpoint yet"
    return TrainingError(error.what + kept, where=error.where, remedy=error.remedy)


def _interrupted(received: int, space: Workspace, step: int) -> Interrupted:
    return Interrupted(
        f"stopped by {signal.Signals(received).name} after step {step}; a checkpoint is in {space.working}",
        remedy=f"allora train --resume --output-dir {space.final}",
        signal=received,
    )


class _Clock:
    """Wall-clock seconds by phase; a phase that comes twice adds up."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[phase] = round(self.seconds.get(phase, 0.0) + time.perf_counter() - start, 3)
