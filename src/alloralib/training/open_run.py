"""Use a trained adapter from Python: its model, its scores, its answers, its exports.

    import alloralib

    run = alloralib.open_run("runs/tweets")
    print(run.evaluate().tuned.metrics["accuracy"])
    print(run.predict(["what a lovely day"])[0].label)

The commands `allora evaluate`, `generate`, `merge` and `export` are built on it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor
from tqdm import tqdm
from transformers import AutoConfig

from ..data.forms import KINDS, LANGUAGE, Kind
from ..errors import ConfigError, MergeError, ModelError, did_you_mean
from ..evaluation.evaluate import evaluate_examples
from ..evaluation.generation import Prompt, generate_answers
from ..evaluation.metrics import Evaluation
from ..evaluation.paired import compare_evaluations
from ..evaluation.scoring import class_logits
from ..export.gguf import export_gguf, find_converter
from ..export.inspect import read_config, read_weights
from ..export.merged import export_merged
from ..export.peft import export_peft
from ..export.proof import Proof
from ..records import MODEL_CONFIG, RECORD_FILE, RunRecord
from .config import RunConfig
from .models import Loaded, load_processor, load_reported, locate_base
from .run_data import RunData

_KIND_OF = {"SEQ_CLS": "classification", "CAUSAL_LM": "causal-lm"}
_DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class PairedEvaluation:
    """The base model and the tuned model, evaluated on the same rows.

    Attributes:
        source: where the rows come from.
        base, tuned: metrics, and the answer to every row.
        paired: what changed from base to tuned, with an exact test; see `evaluation.paired`.
    """

    source: str
    base: Evaluation
    tuned: Evaluation
    paired: dict[str, float]


class Prediction(NamedTuple):
    """The most probable class of a row, and the probability of every class by its name."""

    label: str
    probabilities: dict[str, float]


@dataclass(frozen=True, eq=False)
class OpenRun:
    """A trained adapter and what belongs to it; made by `open_run`.

    Attributes:
        directory: of the run or the adapter.
        config: of the run; None for an adapter without a record.
        task: what the adapter was trained for.
        base_path: directory or hub id of the base model.
        labels: the classes in the order of the logits; None for a language model.
        dtype: of the base model's weights.
        processor: the tokenizer, or the image processor.
    """

    directory: Path
    config: RunConfig | None
    task: Kind
    base_path: str
    labels: list[str] | None
    dtype: torch.dtype
    processor: Any

    @cached_property
    def model(self) -> PeftModel:
        """The base model with the adapter, in evaluation mode, on the GPU if there is one. Loaded on first use.

        Inside `with run.model.disable_adapter():` it is the base model.
        """
        # what is new has the values that training began with, so that the base is evaluated as the run evaluated it
        loaded = self._load(0 if self.config is None else self.config.adapter_seed)
        self._check_saved(loaded.new)
        try:
            model = PeftModel.from_pretrained(loaded.model, self.directory).eval()
        except KeyError as error:  # a module that is trained whole
            what = f"the adapter's weights are damaged: there is no {error.args[0]}"
            raise ModelError(what, where=str(self.directory), remedy="copy it again from where it was trained") from None
        return model.to("cuda" if torch.cuda.is_available() else "cpu")

    def base(self) -> Any:
        """Load the base model without the adapter. Each call loads it again; a new head has other values each time."""
        return self._load(None).model

    def _load(self, seed: int | None) -> Loaded:
        """The base; what its file lacks is drawn from the seed, or with None from one that nobody can know."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.seed() if seed is None else torch.default_generator.manual_seed(seed)
            return load_reported(
                self.base_path, task=self.task, labels=self.labels, dtype=self.dtype,
                pad_token_id=getattr(self.processor, "pad_token_id", None),
            )  # fmt: skip

    def _check_saved(self, new: list[str], *, strictly: bool = False) -> None:
        """Check that the adapter has what the base's file lacks. A run of 0.2.0 may not; there it follows from the seed."""
        saved = read_weights(self.directory)
        lost = sorted({name.rpartition(".")[0] for name in new if f"base_model.model.{name}" not in saved})
        if not lost:
            return
        what = f"neither the adapter nor the file of its base has {', '.join(lost)}: the answers depend on random values"
        if strictly or self.config is None:
            raise ModelError(what, where=str(self.directory), remedy="train again, with a version that saves them (0.3.0)")
        print(f"allora: warning: {self.directory}: {what}; they are drawn from the run's seed here", file=sys.stderr)

    def evaluate(
        self, data: str | os.PathLike[str] | None = None, *, split: str | None = None,
        columns: Mapping[str, str] | None = None, rows: int | None = None, batch_size: int = 16, generate: bool = False,
    ) -> PairedEvaluation:  # fmt: skip
        """Evaluate the base model and the tuned model on the same rows.

        Args:
            data: a file, all of whose rows are used, or a registered set; by default the run's own data.
            split: train, validation or test, of a registered set or of the run's own data; by default test.
            columns: part of a row (text, label, prompt, ...) -> name of its column; by default the run's.
            rows: use only the first `rows` rows.
            batch_size: rows per forward pass.
            generate: also let the models answer freely, and compare their answers with the right ones.

        Raises:
            ConfigError: no data is known, it has no such split, or `generate` with a classifier.
            DataError: the data cannot be read, or a row is malformed.
        """
        if generate:
            self.require_language_model()
        name = None if data is None else os.fspath(data)
        used = self._data.columns(name, columns or {})
        table = self._data.read(name, split, used)
        table = table if rows is None else table.take(list(range(min(rows, len(table)))))
        prepared = self._data.prepare(table, used)

        def score(which: str) -> Evaluation:
            with tqdm(desc=f"evaluating the {which} model", unit="row", file=sys.stderr, leave=False) as bar:
                settings: Any = {"batch_size": batch_size, "generate": generate, "progress": bar.update}
                return evaluate_examples(prepared, self.model, self.processor, **settings)

        with self.model.disable_adapter():
            base = score("base")
        tuned = score("tuned")
        return PairedEvaluation(table.source, base, tuned, compare_evaluations(base, tuned))

    def generate(
        self, prompts: str | Sequence[Prompt], *, system: str | None = None, base: bool = False, max_new_tokens: int = 128,
        temperature: float = 0.0, seed: int = 0, batch_size: int = 8,
    ) -> list[str]:  # fmt: skip
        """Generate an answer to each prompt.

        Args:
            prompts: texts, or conversations (lists of messages with role and content); a string is one prompt. For task chat
                a text is a message of the user.
            system: a system message to put first; for task chat.
            base: answer with the base model, without the adapter.
            max_new_tokens, temperature, seed, batch_size: see `evaluation.generation.generate_answers`.

        Raises:
            ConfigError: the model is a classifier, or `system` with a task other than chat.
        """
        self.require_language_model()
        prompts = [prompts] if isinstance(prompts, str) else prompts
        if self.task == "chat":
            first = [] if system is None else [{"role": "system", "content": system}]
            prompts = [[*first, *([{"role": "user", "content": p}] if isinstance(p, str) else p)] for p in prompts]
        elif system is not None:
            remedy = "leave it out, or open the run for task chat (--task chat)"
            raise ConfigError(f"system (--system) has no meaning for task {self.task}", remedy=remedy)
        with self.model.disable_adapter() if base else nullcontext():
            return generate_answers(
                self.model, self.processor, prompts, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed,
                batch_size=batch_size,
            )  # fmt: skip

    def predict(self, rows: Sequence[Any], *, batch_size: int = 16) -> list[Prediction]:
        """The most probable class of each row, and the probability of every class.

        Args:
            rows: texts; pairs of texts as tuples; images as paths or encoded bytes; or dictionaries by the names of the
                columns that the run was trained on. A string is one row.
            batch_size: rows per forward pass.

        Raises:
            ConfigError: the model is not a classifier.
            DataError: a row without text, or an image that cannot be read.
        """
        if self.labels is None:
            raise ConfigError(f"a model for {self.task} has no classes", where=str(self.directory), remedy="use generate")
        rows = [rows] if isinstance(rows, str) else rows
        if len(rows) == 0:
            return []
        data = self._data.prepare_unlabeled(rows)
        probabilities = class_logits(self.model, data.examples, data.collate, batch_size).softmax(dim=-1)
        by_class = [dict(zip(self.labels, row, strict=True)) for row in probabilities.tolist()]
        return [Prediction(max(row, key=row.__getitem__), row) for row in by_class]

    def export(
        self, output: str | os.PathLike[str], format: Literal["peft", "merged", "gguf"], *, converter: str | None = None
    ) -> tuple[Proof, str]:
        """Write the adapter for other tools. It appears only if what was written gives the adapter's logits when read back.

        Args:
            output: the directory (gguf: the file) to write.
            format: peft (the files of the adapter alone), merged (W + BA as one model) or gguf (for llama.cpp).
            converter: path of llama.cpp's convert_lora_to_gguf.py, for gguf; see `find_converter`.

        Returns:
            the comparison of logits, and the name of the inputs that were compared.

        Raises:
            MergeError: the method or the base cannot be merged, the adapter is untrained, or the logits differ.
        """
        script = find_converter(converter) if format == "gguf" else None
        if format == "merged" and getattr(AutoConfig.from_pretrained(self.base_path), "quantization_config", None) is not None:
            raise MergeError(
                "the base is quantized, and in a merged model rounding would destroy most of what was learned",
                where=self.base_path,
                remedy="export the adapter alone (peft), or merge into the model before quantization (--model DIR)",
            )
        if self.labels is not None:
            self._check_saved(self._load(None).new, strictly=True)
        inputs, source = self._data.example_inputs()
        adapter, target = self.directory, Path(output)
        if script is not None:
            base = Path(self.base_path)
            proof = export_gguf(adapter, target, load_base=self.base, inputs=inputs, base=base, converter=script)
        else:
            write = export_merged if format == "merged" else export_peft
            proof = write(adapter, target, load_base=self.base, inputs=inputs, tokenizer=self.processor)
        return proof, source

    def require_language_model(self) -> None:
        """Raise `ConfigError` for a classifier."""
        if self.task not in LANGUAGE:
            remedy = "evaluate it, without --generate and --lm-eval"
            raise ConfigError(f"a model for {self.task} generates no text", where=str(self.directory), remedy=remedy)

    @cached_property
    def _data(self) -> RunData:
        return RunData(self.config, self.task, self.labels, self.processor)


def open_run(
    path: str | os.PathLike[str], *, model: str | None = None, task: str | None = None, dtype: str | None = None
) -> OpenRun:
    """Open a run, or a saved adapter. Its model is loaded when it is first used.

    Args:
        path: directory of a run (with record.json) or of a saved adapter.
        model: the base model; by default that of the record or of adapter_config.json.
        task: what the adapter was trained for; by default as the record or the adapter says.
        dtype: of the base model's weights, float32 or bfloat16; by default the run's.

    Raises:
        ConfigError: an unknown task or dtype, or the adapter does not say its task or its base model.
        ModelError: no adapter, a damaged adapter, or no such base model.
    """
    for name, value, known in (("task", task, KINDS), ("dtype", dtype, _DTYPES)):
        if value is not None and value not in known:
            raise ConfigError(f"unknown {name} {value!r}", remedy=did_you_mean(value, known))
    directory = Path(path)
    adapter = read_config(directory)
    weights = read_weights(directory)  # a damaged file is found before anything large is loaded
    config = record = None
    if (directory / RECORD_FILE).is_file():
        record = RunRecord.read(directory / RECORD_FILE)
        config = RunConfig.of(record.config, str(directory / RECORD_FILE))
    described = _model_config(directory)
    of_images = any(name.endswith("ForImageClassification") for name in described.get("architectures") or ())
    known = "image-classification" if of_images else _KIND_OF.get(adapter.get("task_type") or "")
    kind: Any = task or (config.kind if config else known)
    if kind is None:
        remedy = f"give its task (--task), one of {', '.join(KINDS)}"
        raise ConfigError("the adapter does not say what it was trained for", where=str(directory), remedy=remedy)
    base = model or (config.model if config else adapter.get("base_model_name_or_path"))
    if not base:
        raise ConfigError("the adapter does not name its base", where=str(directory), remedy="give the model (--model)")
    base_path = locate_base(base)
    labels = None
    if kind not in LANGUAGE:
        names = described.get("id2label") or {}
        labels = record and record.data.get("labels")
        labels = labels or [names[i] for i in sorted(names, key=int)] or _numbered_labels(weights, directory)
    own = any((directory / name).is_file() for name in ("tokenizer_config.json", "preprocessor_config.json"))
    processor = load_processor(str(directory) if own else base_path, kind)
    weights_dtype = getattr(torch, dtype or (config.dtype if config else "float32"))
    return OpenRun(directory, config, kind, base_path, labels, weights_dtype, processor)


def _model_config(directory: Path) -> dict[str, Any]:
    """What a classifier's adapter says of its model; empty for language models and for adapters of other tools."""
    file = directory / MODEL_CONFIG / "config.json"
    if not file.is_file():
        return {}
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ModelError(f"damaged ({error})", where=str(file), remedy="restore the file, or delete it") from None


def _numbered_labels(weights: dict[str, Tensor], directory: Path) -> list[str]:
    """LABEL_0, LABEL_1, ...: one per output of the head that was saved with the adapter."""
    heads = [tensor for key, tensor in weights.items() if key.endswith("weight") and ".lora_" not in key]
    if not heads:
        what = "the adapter has no head, so the number of classes is unknown"
        raise ConfigError(what, where=str(directory), remedy="open the directory of the run")
    return [f"LABEL_{i}" for i in range(heads[-1].shape[0])]
