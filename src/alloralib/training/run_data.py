"""The data of a trained run: its rows and columns, and the examples that its model takes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..data.examples import build_examples, collator
from ..data.forms import Columns, Kind
from ..data.labels import label_names
from ..data.parts import load_parts
from ..data.registry import REGISTRY
from ..data.table import Table, read_table
from ..errors import AlloraError, ConfigError, DataError
from ..evaluation.evaluate import EvaluationData
from .config import RunConfig

SENTENCES = (
    "The capital of France is",
    "Once upon a time there was a",
    "In 1905 he published a paper on the photoelectric effect.",
    "Please choose the correct answer to the question: water boils at",
)
"""Inputs for a model whose own data is not available."""


@dataclass(frozen=True)
class RunData:
    """Reads rows as the run read them, and turns them into examples as training did.

    Attributes:
        config: of the run; None for an adapter without a record, which has no data of its own.
        labels: the classes in the order of the logits; None for a language model.
        processor: the tokenizer, or the image processor.
    """

    config: RunConfig | None
    task: Kind
    labels: list[str] | None
    processor: Any

    @property
    def max_length(self) -> int:
        """Tokens per row."""
        return RunConfig.model_fields["max_length"].default if self.config is None else self.config.max_length

    def columns(self, data: str | None, given: Mapping[str, str]) -> Columns:
        """The column of every part of a row: as given, else as the registered set or the run has it."""
        known = REGISTRY[data].columns.named() if data in REGISTRY else self.config.columns.named() if self.config else {}
        return Columns.of(self.task, known | dict(given))

    def read(self, data: str | None, split: str | None, columns: Columns) -> Table:
        """The rows of a file, of a part of a registered set, or (`data` None) of a part of the run's own data.

        Raises:
            ConfigError: no data is known, or it has no such part.
        """
        if split not in (None, "train", "validation", "test"):
            raise ConfigError(f"unknown split {split!r}", remedy="use train, validation or test")
        if data is None and self.config is None:
            raise ConfigError("an adapter without a record has no data of its own", remedy="give data (--data)")
        if data is not None and data not in REGISTRY:
            if split is not None:
                what = "a split is for a registered set or for the run's own data"
                raise ConfigError(what, where=data, remedy="leave --split out: all rows of a file are used")
            return read_table(data)
        settings: dict[str, Any] = {} if self.config is None else self.config.part_settings()
        if data is not None:  # a registered set, from the same place as the run's own
            settings = {"data": data, "data_dir": settings.get("data_dir")}
        rows = getattr(load_parts(self.task, columns, **settings), split or "test")
        if rows is None:
            raise ConfigError(f"there is no part {split!r}", where=settings["data"], remedy="use --split test")
        return rows

    def prepare(self, table: Table, columns: Columns) -> EvaluationData:
        """Rows with known answers, ready to be evaluated. If the classes have no names but LABEL_0, ..., the data names them.

        Raises:
            ConfigError: it has to name them, and has another number of classes than the model.
        """
        labels = self.labels
        if labels is not None and self.config is None and labels == [f"LABEL_{i}" for i in range(len(labels))]:
            labels = label_names(table, columns.label or "label")  # in the order that training would give them
            if len(labels) != len(self.labels or ()):
                raise ConfigError(
                    f"the data has {len(labels)} classes, and the adapter's head has {len(self.labels or ())}",
                    where=table.source, remedy="give data with the classes of the training data, or open the run's directory",
                )  # fmt: skip
        return self._prepared(table, columns, labels)

    def prepare_unlabeled(self, rows: Sequence[Any]) -> EvaluationData:
        """Rows of a classifier whose classes are to be predicted, as `OpenRun.predict` takes them."""
        assert self.labels is not None
        columns = self.columns(None, {})
        names = [name for part, name in columns.named().items() if part != "label"]
        values: dict[str, list[Any]] = {name: [] for name in names}
        for number, row in enumerate(rows, start=1):
            cells = [row.get(name) for name in names] if isinstance(row, Mapping) else row if isinstance(row, tuple) else [row]
            if len(cells) != len(names):
                what = f"expected {len(names)} values ({', '.join(names)}), got {len(cells)}"
                raise DataError(what, where=f"row {number}", remedy="give texts, or pairs of texts as tuples")
            for name, cell in zip(names, cells, strict=True):
                values[name].append(os.fspath(cell) if isinstance(cell, os.PathLike) else cell)
        values[columns.label or "label"] = [self.labels[0]] * len(rows)  # examples have labels; nothing reads these
        return self._prepared(Table("rows", "", values), columns, self.labels)

    def example_inputs(self, count: int = 8) -> tuple[list[dict[str, Tensor]], str]:
        """Inputs of the model, one row per batch, and what they are: test rows of the run, else built-in ones."""
        columns, length = self.columns(None, {}), self.max_length
        try:
            table = self.read(None, None, columns)
            data = self._prepared(table.take(list(range(min(count, len(table))))), columns, self.labels)
        except (AlloraError, OSError):  # the data may have been moved or deleted since
            if self.task != "image-classification":
                settings: dict[str, Any] = {"return_tensors": "pt", "truncation": True, "max_length": length}
                return [dict(self.processor(text, **settings)) for text in SENTENCES], "built-in sentences"
            noise = torch.randint(0, 256, (4, 64, 64, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
            pixels = self.processor(images=list(noise.numpy()), return_tensors="pt")["pixel_values"]
            return [{"pixel_values": image[None]} for image in pixels], "images of noise"
        batches = [data.collate([example]) for example in data.examples]
        inputs = [{name: tensor for name, tensor in batch.items() if name != "labels"} for batch in batches]
        return inputs, f"{len(data.table)} test rows"

    def _prepared(self, table: Table, columns: Columns, labels: list[str] | None) -> EvaluationData:
        examples = build_examples(self.task, table, columns, processor=self.processor, names=labels, max_length=self.max_length)
        return EvaluationData(self.task, table, columns, examples, collator(self.task, self.processor), labels)
