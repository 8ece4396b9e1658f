"""What `evaluate`, `generate`, `merge` and `export` start from: a run's directory, or an adapter's and what goes with it."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoConfig

from ..data.choices import questions
from ..data.examples import build_examples
from ..data.forms import KINDS, LANGUAGE, Columns, Kind
from ..data.labels import label_names
from ..data.parts import load_parts
from ..data.registry import REGISTRY
from ..data.table import Table, read_table
from ..errors import AlloraError, ConfigError
from ..export.inspect import read_config, read_weights
from ..records import RECORD_FILE, RunRecord
from ..training.config import RunConfig
from ..training.models import load_model, load_processor, locate

_KIND_OF = {"SEQ_CLS": "classification", "CAUSAL_LM": "causal-lm"}
_PARTS_OF_A_RUN = (
    *("data", "data_dir", "validation_data", "validation_share", "test_data", "test_share"),
    *("train_rows", "validation_rows", "test_rows", "data_seed", "evaluation_seed"),
)
SENTENCES = (
    "The capital of France is",
    "Once upon a time there was a",
    "In 1905 he published a paper on the photoelectric effect.",
    "Please choose the correct answer to the question: water boils at",
)
"""What models are compared on where a run's own data is not to be had."""


@dataclass(frozen=True)
class OpenRun:
    """An adapter and the model it belongs to, not loaded yet.

    Attributes:
        config: the run's own; None for an adapter without a record.
        base: where the frozen model is.
        labels: names of the classes, for a classifier.
        processor: the tokenizer, or the image processor.
    """

    directory: Path
    config: RunConfig | None
    kind: Kind
    base: str
    labels: list[str] | None
    dtype: torch.dtype
    processor: Any

    @property
    def max_length(self) -> int:
        """Tokens per row."""
        return RunConfig.model_fields["max_length"].default if self.config is None else self.config.max_length

    def is_quantized(self) -> bool:
        """Whether the base is stored in fewer bits than it computes in."""
        return getattr(AutoConfig.from_pretrained(self.base), "quantization_config", None) is not None

    def load_base(self) -> Any:
        """The frozen model, the same every time: a new head is drawn as the run drew it."""
        torch.manual_seed(0 if self.config is None else self.config.adapter_seed)
        return load_model(
            self.base, task=self.kind, labels=self.labels, dtype=self.dtype,
            pad_token_id=getattr(self.processor, "pad_token_id", None),
        )  # fmt: skip

    def load(self) -> Any:
        """The adapted model, ready to answer, on the GPU if there is one."""
        model = PeftModel.from_pretrained(self.load_base(), self.directory).eval()
        return model.to("cuda" if torch.cuda.is_available() else "cpu")


def open_run(arguments: argparse.Namespace) -> OpenRun:
    """Find out what goes with an adapter.

    Args:
        arguments: of `arguments.add_run`.

    Raises:
        AlloraError: no adapter, a damaged one, or a base or task that cannot be told.
    """
    directory = Path(arguments.run)
    stock = read_config(directory)
    read_weights(directory)  # a damaged file or a pickle is refused before anything large is loaded
    config = record = None
    if (directory / RECORD_FILE).is_file():
        record = RunRecord.read(directory / RECORD_FILE)
        config = RunConfig.of(record.config, str(directory / RECORD_FILE))
    kind: Any = arguments.task or (config.kind if config else _KIND_OF.get(stock.get("task_type") or ""))
    if kind is None:
        remedy = f"give --task, one of {', '.join(KINDS)}"
        raise ConfigError("the adapter does not say what it is for", where=str(directory), remedy=remedy)
    name = arguments.model or (config.model if config else stock.get("base_model_name_or_path"))
    if not name:
        raise ConfigError("the adapter does not name its base", where=str(directory), remedy="give --model")
    dtype = arguments.dtype or (config.dtype if config else "float32")
    base = locate(name)
    labels = None
    if kind not in LANGUAGE:
        labels = record.data["labels"] if record is not None else _labels(directory)
    return OpenRun(directory, config, kind, base, labels, getattr(torch, dtype), _processor(directory, base, kind))


def _labels(directory: Path) -> list[str]:
    """Stand-in names for the classes of an adapter without a record; how many there are its own head says."""
    heads = [t for key, t in read_weights(directory).items() if key.endswith("weight") and ".lora_" not in key]
    if not heads:
        raise ConfigError(
            "the adapter has no head, so the number of classes is not known",
            where=str(directory),
            remedy="give a run's directory",
        )
    return [f"LABEL_{i}" for i in range(heads[-1].shape[0])]


def _processor(directory: Path, base: str, kind: Kind) -> Any:
    own = any((directory / name).is_file() for name in ("tokenizer_config.json", "preprocessor_config.json"))
    return load_processor(str(directory) if own else base, kind)


def read_rows(run: OpenRun, data: str | None, split: str, columns: dict[str, str]) -> Table:
    """The rows to ask about, as a Table.

    Args:
        data: a file, all of whose rows are taken; a registered set; None for the run's own data.
        split: which part of a registered set or of the run's own data: train, validation or test.
        columns: part -> column, over the run's own.

    Raises:
        ConfigError: no data is known, or there is no such part.
    """
    if split not in ("train", "validation", "test"):
        raise ConfigError(f"unknown --split {split!r}", remedy="use train, validation or test")
    if data is None and run.config is None:
        raise ConfigError("an adapter without a record does not say on what to ask it", remedy="give --data")
    if data is not None and data not in REGISTRY:
        return read_table(data)
    settings: dict[str, Any] = {} if run.config is None else run.config.model_dump(include={*_PARTS_OF_A_RUN})
    if data is not None:  # another set, from where the run's own came
        settings = {"data": data, "data_dir": settings.get("data_dir")}
    parts = load_parts(run.kind, columns_of(run, columns, data), **settings)
    rows = getattr(parts, split)
    if rows is None:
        raise ConfigError(f"there is no part {split!r}", where=settings["data"], remedy="use --split test")
    return rows


def columns_of(run: OpenRun, given: dict[str, str], data: str | None) -> Columns:
    """Which column plays which part: what is given, over the registered set's or the run's own."""
    known = REGISTRY[data].columns.named() if data in REGISTRY else run.config.columns.named() if run.config else {}
    return Columns.of(run.kind, known | given)


def proof_inputs(run: OpenRun, count: int = 8) -> tuple[list[dict[str, torch.Tensor]], str]:
    """What an export is compared on: one row per batch, from the run's data or else built in; and which of the two."""
    try:
        rows = read_rows(run, None, "test", {})
        rows = rows.take(list(range(min(count, len(rows)))))
        return _inputs(run, rows, columns_of(run, {}, None)), f"{len(rows)} test rows"
    except (AlloraError, OSError):  # the data of a run may be gone, and the adapter still has to be proven
        if run.kind == "image-classification":
            noise = torch.randint(0, 256, (4, 64, 64, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
            pixels = run.processor(images=list(noise.numpy()), return_tensors="pt")["pixel_values"]
            return [{"pixel_values": p[None].to(run.dtype)} for p in pixels], "images of noise"
        return _encoded(run, list(SENTENCES)), "built-in sentences"


def _inputs(run: OpenRun, rows: Table, columns: Columns) -> list[dict[str, torch.Tensor]]:
    if columns.prompt is not None and columns.completion is not None:
        pairs = zip(rows.columns[columns.prompt], rows.columns[columns.completion], strict=True)
        return _encoded(run, [prompt + completion for prompt, completion in pairs])
    if run.kind == "multiple-choice":
        return _encoded(run, [q.prompt + q.choices[q.answer] for q in questions(rows, columns)])
    if run.kind == "causal-lm":
        return _encoded(run, rows.columns[columns.text or "text"])
    examples: Any = build_examples(
        run.kind, rows, columns, processor=run.processor, names=run.labels, max_length=run.max_length
    )
    names = {"input_ids", "attention_mask", "token_type_ids", "pixel_values"}
    return [{name: torch.as_tensor(value)[None] for name, value in example.items() if name in names} for example in examples]


def _encoded(run: OpenRun, texts: list[str]) -> list[dict[str, torch.Tensor]]:
    return [dict(run.processor(text, return_tensors="pt", truncation=True, max_length=run.max_length)) for text in texts]


def named_by(run: OpenRun, rows: Table, columns: Columns) -> OpenRun:
    """The run with the names of its classes taken from the data, as training takes them.

    Raises:
        ConfigError: the data has another number of classes than the adapter's head.
    """
    assert run.labels is not None
    names = label_names(rows, columns.label or "label")
    if len(names) != len(run.labels):
        raise ConfigError(
            f"the data has {len(names)} classes and the adapter's head {len(run.labels)}",
            where=str(run.directory),
            remedy="give data with the classes it was trained on, or the run's directory",
        )
    return replace(run, labels=names)
