"""`train`: one run, from a configuration to an adapter with its record."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from peft import TaskType, get_peft_model
from tqdm import tqdm

from ..adapters.methods import DEFAULT_ETA, METHODS, peft_config
from ..adapters.targets import check_targets
from ..data.split import Split, drop_overlap, sample, split_table
from ..data.table import Table, read_table
from ..data.tokens import classification_examples, label_names, labels, language_examples, majority_share
from ..evaluation.answers import predict_classes, token_loss
from ..evaluation.metrics import classification_metrics, perplexity
from ..records import RECORD_FILE, RunRecord
from .config import DEFAULT_HELD_OUT, RunConfig
from .models import load_model, load_tokenizer, locate
from .output import Output
from .trainers import Progress, check_optimizer, make_trainer

_LIBRARIES = ("torch", "transformers", "peft", "trl", "accelerate", "datasets", "numpy", "alloralib")
Decorate = Callable[[RunRecord, Path], None]


@dataclass
class _Data:
    """The rows of a run, tokenised, and what the record says of them."""

    train: Any
    evaluation: Any
    names: list[str] | None
    described: dict[str, Any]


def train(config: RunConfig, *, decorate: Decorate | None = None) -> RunRecord:
    """Fine-tune as the configuration says.

    The output directory appears when the run is complete: the adapter (stock LoRA files and our sidecar), the
    tokenizer and `record.json`. Two runs of one configuration on one machine give bit-identical adapters.

    Args:
        config: what to do.
        decorate: called with the record and the directory before it is put in place, to add pictures and pages.

    Raises:
        AlloraError: a setting, a row, a model or a directory that does not do; nothing is written then.
    """
    clock = _Clock()
    check_optimizer(config)
    adapter_config = _adapter_config(config)
    with Output(config.output_dir, config.overwrite) as output:
        with clock("load"):
            path = locate(config.model)
            tokenizer = load_tokenizer(path)
            data = _load_data(config, tokenizer)
            model = _load_model(config, path, tokenizer, data.names)
            frozen = sum(p.numel() for p in model.parameters())
            check_targets(model, config.target_modules)
            torch.manual_seed(config.adapter_seed)
            model = get_peft_model(model, adapter_config)
        progress = Progress()
        trainer = make_trainer(config, model, tokenizer, data.train, data.evaluation, str(output.staging), progress)
        metrics: dict[str, dict[str, float]] = {}
        with clock("evaluate"):
            metrics["before"] = _evaluate(config, trainer, data, "before")
        with clock("train"):
            trainer.train()
        with clock("evaluate"):
            metrics["after"] = _evaluate(config, trainer, data, "after")
        model.save_pretrained(output.staging)
        tokenizer.save_pretrained(output.staging)
        record = RunRecord(
            config=config.model_dump(exclude_none=True),
            command=config.command(),
            versions={"python": platform.python_version()} | {lib: importlib.metadata.version(lib) for lib in _LIBRARIES},
            machine={"processor": platform.machine(), "threads": torch.get_num_threads(), "device": str(model.device)},
            model={"name": config.model, "parameters": frozen, "class": type(model.get_base_model()).__name__},
            data=data.described,
            adapter=_describe_adapter(config, model),
            metrics=metrics,
            history=progress.history,
            seconds=clock.seconds,
        )
        record.write(output.staging / RECORD_FILE)
        if decorate is not None:
            decorate(record, output.staging)
        output.publish()
    return record


def _adapter_config(config: RunConfig) -> Any:
    return peft_config(
        config.method,
        r=config.r,
        eta=config.eta,
        dropout=config.dropout,
        apply_to=config.apply_to,
        target_modules=config.target_modules,
        task_type=TaskType.SEQ_CLS if config.task == "classification" else TaskType.CAUSAL_LM,
    )


def _load_data(config: RunConfig, tokenizer: Any) -> _Data:
    table = read_table(config.data)
    held_out = None if config.evaluation_data is None else read_table(config.evaluation_data)
    if config.task == "classification":
        columns = [config.text]
        names = label_names(table, config.label)
    else:
        columns = [config.text] if config.prompt_column is None else [config.prompt_column, config.completion_column or ""]
        names = None

    def keys(rows: Table) -> list[str]:
        flags = ("text-column",) if len(columns) == 1 else ("prompt-column", "completion-column")
        values = [rows.texts(column, flag) for column, flag in zip(columns, flags, strict=True)]
        return ["\x1f".join(parts) for parts in zip(*values, strict=True)]

    if held_out is None:
        split = split_table(table, keys(table), config.held_out or DEFAULT_HELD_OUT, config.evaluation_seed)
    else:
        split = drop_overlap(table, keys(table), held_out, keys(held_out))
    split = Split(
        sample(split.train, config.train_rows, config.data_seed),
        sample(split.evaluation, config.evaluation_rows, config.evaluation_seed),
        split.duplicates_removed,
    )
    described: dict[str, Any] = {
        part: {"source": rows.source, "sha256": rows.sha256, "rows": len(rows)}
        for part, rows in (("train", split.train), ("evaluation", split.evaluation))
    }
    described["duplicates_removed"] = split.duplicates_removed
    if names is not None:
        described |= {"labels": names, "majority": majority_share(labels(split.evaluation, config.label))}
    parts = [_examples(config, rows, names, tokenizer) for rows in (split.train, split.evaluation)]
    return _Data(parts[0], parts[1], names, described)


def _examples(config: RunConfig, rows: Table, names: list[str] | None, tokenizer: Any) -> datasets.Dataset:
    if names is not None:
        return classification_examples(
            rows, text=config.text, label=config.label, names=names, tokenizer=tokenizer, max_length=config.max_length
        )
    text = config.text if config.prompt_column is None else None
    return language_examples(
        rows, text=text, prompt=config.prompt_column, completion=config.completion_column, tokenizer=tokenizer
    )


def _load_model(config: RunConfig, path: str, tokenizer: Any, names: list[str] | None) -> Any:
    torch.manual_seed(config.adapter_seed)  # for the new head of a classifier
    return load_model(
        path, task=config.task, labels=names, dtype=getattr(torch, config.dtype), pad_token_id=tokenizer.pad_token_id
    )


def _evaluate(config: RunConfig, trainer: Any, data: _Data, when: str) -> dict[str, float]:
    examples, collate, model = trainer.eval_dataset, trainer.data_collator, trainer.model
    if config.task == "causal-lm":
        wanted = [c for c in ("input_ids", "labels", "completion_mask") if c in examples.column_names]
        examples = examples.select_columns(wanted)
    with tqdm(total=len(examples), desc=f"evaluating {when}", unit="row", file=sys.stderr, leave=False) as bar:
        if data.names is None:
            loss, tokens = token_loss(model, examples, collate, config.batch_size, bar.update)
            return {"loss": loss, "perplexity": perplexity(loss), "tokens": tokens}
        predicted = predict_classes(model, examples, collate, config.batch_size, bar.update)
    return classification_metrics(predicted, np.asarray(examples["labels"]), len(data.names))


def _describe_adapter(config: RunConfig, model: Any) -> dict[str, Any]:
    knobs: dict[str, Any] = {}
    if "eta" in METHODS[config.method].knobs:
        knobs["eta"] = config.eta or DEFAULT_ETA
    if "apply_to" in METHODS[config.method].knobs:
        knobs["apply_to"] = config.apply_to or "gradient"
    return {
        "method": config.method,
        "r": config.r,
        **knobs,
        "modules": len(model.base_model.targeted_module_names),
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }


class _Clock:
    """Wall-clock seconds by phase; a phase that comes twice adds up."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Any:
        start = time.perf_counter()
        yield
        self.seconds[phase] = round(self.seconds.get(phase, 0.0) + time.perf_counter() - start, 3)
