"""`Run`: everything a training run consists of, and how it is made from a configuration."""

from __future__ import annotations

import datetime
import importlib.util
import sys
from dataclasses import dataclass, replace
from typing import Any

import datasets
import torch
from peft import TaskType, get_peft_model
from tqdm import tqdm

from ..adapters.elementwise import fuse_elementwise
from ..adapters.methods import make_config
from ..adapters.targets import check_targets, settings_of, trained_whole
from ..data.examples import Collate, build_examples, collator
from ..data.labels import in_order_of_base, label_names, label_notes
from ..data.parts import Parts, load_parts
from ..data.registry import REGISTRY
from ..data.table import Table
from ..data.templates import reads_clock, set_date, shows_date
from ..data.tokens import TokenCache
from ..errors import ConfigError
from ..evaluation.evaluate import EvaluationData, evaluate_examples
from ..evaluation.limits import Limits, check_examples
from ..evaluation.metrics import Evaluation
from ..evaluation.shots import Shots
from ..files import sha256_of_json
from .arguments import check_optimizer
from .callbacks import StopOnSignal
from .checkpoints import Checkpoint, read_latest
from .compiling import check_compiling, compile_blocks, eagerly
from .config import DEFAULT_TEST_SHARE, RunConfig
from .directory import RunDirectory
from .limits import fit_length, fit_tokenizer, read_limits
from .models import classes_of, load_processor, load_reported, locate, public_name
from .processes import is_main_process
from .state import RunState
from .suitable import beside_the_text, check_checkpointing

_TASK_TYPES = {"classification": TaskType.SEQ_CLS, "image-classification": None}


@dataclass(frozen=True)
class Run:
    """A training run: its settings, data, model and state.

    Attributes:
        directory: where it is written.
        signals: tells whether a signal stops it.
        processor: the tokenizer or image processor.
        parts: the rows as they were read.
        labels: the classes in the order of the logits; None for language models.
        examples: the rows of every part as the model takes them.
        collate: makes a batch of examples.
        model: the PEFT model.
        base_parameters: the number of parameters without the adapter.
        new: names of the base's parameters that its file does not have; they are trained whole and saved with the adapter.
        state: history, validation, best weights.
        checkpoint: what it is resumed from; None for a new run.
        max_length: tokens per row.
        limits: what the model can take; None for images.
        notes: what was changed in the settings or the tokenizer to fit the model.
    """

    config: RunConfig
    directory: RunDirectory
    signals: StopOnSignal
    processor: Any
    parts: Parts
    labels: list[str] | None
    examples: dict[str, datasets.Dataset]
    collate: Collate
    model: Any
    base_parameters: int
    new: list[str]
    state: RunState
    checkpoint: Checkpoint | None
    max_length: int
    limits: Limits | None
    notes: list[str]

    def test(self, model: Any, when: str) -> Evaluation:
        """Metrics and answers on the test rows.

        Args:
            model: the trainer's; it may be on another device than when it was made.
            when: for the progress bar.
        """
        return self._evaluate(model, self.parts.test, "test", f"evaluating {when}", choices=True)

    def validate(self, model: Any) -> dict[str, float]:
        """Metrics on the validation rows, among them `loss`."""
        assert self.parts.validation is not None
        return self._evaluate(model, self.parts.validation, "validation", "validating", choices=False).metrics

    def test_with(self, model: Any, shots: Shots) -> Evaluation:
        """The same as `test` with examples in the prompts."""
        title = f"evaluating with {len(shots.examples)} examples in the prompt"
        return self._evaluate(model, self.parts.test, "test", title, choices=True, shots=shots)

    def _evaluate(
        self, model: Any, table: Table, part: str, title: str, *, choices: bool, shots: Shots | None = None
    ) -> Evaluation:
        rows, prompts = (self.examples[part], None) if shots is None else (shots.rows, shots.prompts)
        data = EvaluationData(self.config.kind, table, self.config.columns, rows, self.collate, self.labels, prompts)
        total = len(table) * (2 if choices and self.config.kind == "multiple-choice" else 1)
        bar = tqdm(total=total, desc=title, unit="row", file=sys.stderr, leave=False, disable=not is_main_process())
        with eagerly(self.config.compile), bar:
            return evaluate_examples(
                data, model, self.processor, batch_size=self.config.batch_size, choices=choices, progress=bar.update
            )  # fmt: skip


def prepare(config: RunConfig, directory: RunDirectory, signals: StopOnSignal, *, resume: bool = False) -> Run:
    """Read the rows, load the model and add the adapter.

    Args:
        resume: also read the latest checkpoint, and continue from the state in it.

    Raises:
        AlloraError: a setting, row, model or checkpoint that cannot be used, and what to do about it.
    """
    _check_machine(config)
    adapter_config = _adapter_config(config)
    path = locate(config.model)
    processor = load_processor(path, config.kind)
    limits = read_limits(path, config.kind, processor)
    max_length, notes = fit_length(config.max_length, limits, config.model)
    notes += fit_tokenizer(processor, limits)
    parts = _load_parts(config)
    tables = tables_of(parts)
    checkpoint = read_latest(directory.checkpoints) if resume else None
    state = RunState({name: _digest(table) for name, table in tables.items()})
    if checkpoint is not None:
        state.restore(checkpoint)
    config = _with_chat_date(config, processor, state)
    labels = None
    if not config.is_language:
        own = classes_of(path)
        labels = class_names(config, parts, own)
        parts = replace(parts, notes=(*parts.notes, *label_notes(labels, own)))
    examples = _tokenized(config, tables, processor, labels, max_length)
    if limits is not None:
        for part, table in tables.items():
            check_examples(examples[part], limits, processor, table.where)
    torch.manual_seed(config.adapter_seed)  # for the new head of a classifier
    model, new = load_reported(
        path, task=config.kind, labels=labels, dtype=getattr(torch, config.dtype),
        pad_token_id=getattr(processor, "pad_token_id", None),
    )  # fmt: skip
    if is_main_process():
        state.set_base(config.model, path, checkpoint)
    model.name_or_path = public_name(config.model)  # what PEFT writes as the adapter's base
    base_parameters = sum(p.numel() for p in model.parameters())
    text = config.kind == "classification"
    whole = [] if config.is_language else trained_whole(model, new, text=text)
    check_targets(model, config.target_modules, whole)
    if config.gradient_checkpointing:
        check_checkpointing(model)
    unused = [] if config.kind == "image-classification" else beside_the_text(model)
    for name, value in settings_of(model, config.target_modules, whole, text=text, unused=unused).items():
        setattr(adapter_config, name, value)
    torch.manual_seed(config.adapter_seed)
    model = get_peft_model(model, adapter_config)
    keep_running_statistics(model)
    compile_blocks(model) if config.compile else fuse_elementwise(model)
    return Run(
        config=config, directory=directory, signals=signals, processor=processor, parts=parts, labels=labels,
        examples=examples, collate=collator(config.kind, processor), model=model, base_parameters=base_parameters,
        new=new, state=state, checkpoint=checkpoint, max_length=max_length, limits=limits, notes=notes,
    )  # fmt: skip


def tables_of(parts: Parts) -> dict[str, Table]:
    """The parts that exist, by name."""
    validation = {} if parts.validation is None else {"validation": parts.validation}
    return {"train": parts.train} | validation | {"test": parts.test}


def class_names(config: RunConfig, parts: Parts, base: list[str]) -> list[str]:
    """The classes in the order of the logits: as a registered set declares them, else those of the training rows in their
    own order (`data.labels.in_order`); in the base model's order if they are its classes.

    Args:
        base: the base model's classes in the order of its logits; empty if it has none.

    Raises:
        DataError: fewer than two.
    """
    known = REGISTRY.get(config.data)
    declared = None if known is None else known.labels
    return in_order_of_base(label_names(parts.train, config.columns.label or "label", declared), base)


def keep_running_statistics(model: Any) -> None:
    """Let batch normalization use its stored statistics while training, too: they are part of the frozen base, and an adapter
    that was trained with others would give other logits on the base as it is loaded."""
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):  # pyright: ignore[reportPrivateUsage]
            module.eval()
            module.train = lambda mode=True, module=module: module  # pyright: ignore[reportAttributeAccessIssue]


def _check_machine(config: RunConfig) -> None:
    check_optimizer(config)
    if config.compile:
        check_compiling()
    if config.dtype == "float16" and not torch.cuda.is_available():
        remedy = "use float32, or bfloat16 to save memory"
        raise ConfigError("float16 on a CPU is slow, and its gradients underflow", where="--dtype", remedy=remedy)
    for reporter in config.report_to:
        if importlib.util.find_spec(reporter) is None:
            raise ConfigError(f"{reporter} is not installed", where="--report-to", remedy=f"pip install {reporter}")


def _adapter_config(config: RunConfig) -> Any:
    settings: Any = config.model_dump(include={"r", "eta", "dropout", "apply_to", "target_modules"})
    return make_config(config.method, **settings, task_type=_TASK_TYPES.get(config.kind, TaskType.CAUSAL_LM))


def _with_chat_date(config: RunConfig, processor: Any, state: RunState) -> RunConfig:
    """The configuration with the day that the chat template is told: as given, that of the resumed run, or today.

    It is fixed, so that the run's rows, its evaluations and its answers all have the same text on any day.
    """
    if config.kind != "chat":
        return config
    if config.chat_date is None and reads_clock(processor):
        config = config.model_copy(update={"chat_date": state.chat_date or datetime.date.today().isoformat()})
    if config.chat_date is not None and not shows_date(processor):
        raise ConfigError("the model's chat template shows no date", where=config.model, remedy="leave --chat-date out")
    set_date(processor, config.chat_date)
    state.chat_date = config.chat_date
    return config


def _load_parts(config: RunConfig) -> Parts:
    parts = load_parts(config.kind, config.columns, **config.part_settings(), default_test_share=DEFAULT_TEST_SHARE)
    if parts.validation is None and (config.patience or config.evaluate_every or config.validation_rows):
        what = "patience, evaluate_every and validation_rows need validation rows, and there are none"
        raise ConfigError(what, where=config.data, remedy="give --validation-share or --validation-data")
    return parts


def _tokenized(
    config: RunConfig, tables: dict[str, Table], processor: Any, labels: list[str] | None, max_length: int
) -> dict[str, datasets.Dataset]:
    """The examples of every part, from the cache where they are there."""
    cache = TokenCache(config.kind, config.columns, processor, names=labels, max_length=max_length)
    examples: dict[str, datasets.Dataset] = {}
    for part, table in tables.items():
        cached = cache.read(table)
        if cached is None:
            cached = build_examples(
                config.kind, table, config.columns, processor=processor, names=labels, max_length=max_length
            )
            cache.write(table, cached)
        examples[part] = cached
    return examples


def _digest(table: Table) -> str:
    """Of the rows that are used, so that a changed file, share or seed is noticed."""
    return sha256_of_json([table.sha256, table.lines, table.rows, len(table)])
