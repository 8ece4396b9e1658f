"""Use a trained adapter from Python: its model, its scores, its answers, its exports.

    import alloralib

    run = alloralib.open_run("runs/tweets")
    print(run.evaluate().tuned.metrics["accuracy"])
    print(run.predict(["what a lovely day"])[0].label)

The commands `allora evaluate`, `predict`, `generate`, `merge` and `export` are built on it. `open_run` makes it (open_run.py).
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from tqdm import tqdm
from transformers import AutoConfig

from ..data.conversations import read_prompt
from ..data.forms import LANGUAGE, Columns, Kind
from ..data.table import Table
from ..errors import ConfigError, MergeError, ModelError, did_you_mean
from ..evaluation.batching import Progress, no_progress
from ..evaluation.evaluate import evaluate_examples
from ..evaluation.generation import Prompt, generate_answers, set_end_tokens
from ..evaluation.limits import Limits
from ..evaluation.metrics import Evaluation
from ..evaluation.paired import compare_evaluations
from ..evaluation.prediction import Prediction, predict_choices, predict_classes
from ..export.gguf import export_gguf
from ..export.inspect import read_weights
from ..export.merged import export_merged
from ..export.peft import export_peft
from ..export.proof import Proof, load_adapter
from .base_identity import BaseIdentity, check_base, stored_dtype, stored_dtypes
from .config import RunConfig
from .models import Loaded, load_reported
from .run_data import RunData

_MERGED_DTYPES = ("float32", "bfloat16", "float16")


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
        limits: what the base model can take; None for images.
        trained_on: the identity of the base model in training; None if the adapter does not say it.
        allow_other_base: only warn if the base is another one.
    """

    directory: Path
    config: RunConfig | None
    task: Kind
    base_path: str
    labels: list[str] | None
    dtype: torch.dtype
    processor: Any
    limits: Limits | None
    trained_on: BaseIdentity | None = None
    allow_other_base: bool = False

    @cached_property
    def model(self) -> PeftModel:
        """The base model with the adapter, in evaluation mode, on the GPU if there is one. Loaded on first use.

        Inside `with run.model.disable_adapter():` it is the base model.

        Raises:
            ModelError: the base is not the one that the adapter was trained on.
        """
        # what is new has the values that training began with, so that the base is evaluated as the run evaluated it
        loaded = self._load(self.dtype, seed=0 if self.config is None else self.config.adapter_seed)
        self._check_saved(loaded.new)
        try:
            model = load_adapter(loaded.model, self.directory)
        except KeyError as error:  # a module that is trained whole
            what = f"the adapter's weights are damaged: there is no {error.args[0]}"
            raise ModelError(what, where=str(self.directory), remedy="copy it again from where it was trained") from None
        return model.to("cuda" if torch.cuda.is_available() else "cpu")

    def base(self) -> Any:
        """Load the base model without the adapter. Each call loads it again; a new head has other values each time.

        The generation config of a language model lists the tokens with which the tuned model ends its answers.

        Raises:
            ModelError: it is not the one that the adapter was trained on.
        """
        return self._load(self.dtype).model

    def _load(self, dtype: torch.dtype, *, seed: int | None = None) -> Loaded:
        """The base; what its file lacks is drawn from the seed, or with None from one that nobody can know."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.seed() if seed is None else torch.default_generator.manual_seed(seed)
            loaded = load_reported(
                self.base_path, task=self.task, labels=self.labels, dtype=dtype,
                pad_token_id=getattr(self.processor, "pad_token_id", None),
            )  # fmt: skip
        _ = self._checked_base
        if self.task in LANGUAGE:
            set_end_tokens(loaded.model, self.processor, self.task, self.directory)
        return loaded

    @cached_property
    def _checked_base(self) -> None:
        """Check once that the loaded base is the one that the adapter was trained on."""
        check_base(self.trained_on, self.base_path, str(self.directory), allow_other=self.allow_other_base)

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
        used = self.data.columns(name, columns or {})
        table = self.data.read(name, split, used)
        table = table if rows is None else table.take(list(range(min(rows, len(table)))))
        prepared = self.data.prepare(table, used)

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
        temperature: float = 0.0, seed: int = 0, batch_size: int = 8, progress: Progress = no_progress,
    ) -> list[str]:  # fmt: skip
        """Generate an answer to each prompt.

        Args:
            prompts: texts, or conversations; a string is one prompt. A conversation is a list of messages with role and
                content, or a row of data: {"messages": ..., "tools": ..., "system": ...}. For task chat a text is a
                message of the user.
            system: a system message to put first; for task chat.
            base: answer with the base model, without the adapter.
            max_new_tokens, temperature, seed, batch_size, progress: see `evaluation.generation.generate_answers`.

        Raises:
            ConfigError: the model is a classifier, or `system` with a task other than chat.
            DataError: a malformed conversation, or one that the chat template refuses.
        """
        self.require_language_model()
        prompts = [prompts] if isinstance(prompts, str) else prompts
        if self.task == "chat":
            prompts = [read_prompt(prompt, f"prompt {i}", system) for i, prompt in enumerate(prompts, start=1)]
        elif system is not None:
            remedy = "leave it out, or open the run for task chat (--task chat)"
            raise ConfigError(f"system (--system) has no meaning for task {self.task}", remedy=remedy)
        with self.model.disable_adapter() if base else nullcontext():
            return generate_answers(
                self.model, self.processor, prompts, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed,
                batch_size=batch_size, progress=progress,
            )  # fmt: skip

    def predict(self, rows: Sequence[Any], *, batch_size: int = 16) -> list[Prediction]:
        """The most probable class of each row, and the probability of every class; for multiple choice, of its choices.

        Args:
            rows: texts; pairs of texts as tuples; images as paths or encoded bytes; prompt and choices as tuples; or
                dictionaries by the names of the columns that the run was trained on. A string is one row.
            batch_size: rows per forward pass.

        Raises:
            ConfigError: the model is for causal-lm or chat.
            DataError: a row without text, or an image that cannot be read.
        """
        if self.task in ("causal-lm", "chat"):
            raise ConfigError(f"a model for {self.task} has no classes", where=str(self.directory), remedy="use generate")
        rows = [rows] if isinstance(rows, str) else rows
        if len(rows) == 0:
            return []
        return self.predict_table(self.data.table(rows), self.data.input_columns(None, {}), batch_size=batch_size)

    def predict_table(
        self, table: Table, columns: Columns, *, batch_size: int = 16, progress: Progress = no_progress
    ) -> list[Prediction]:
        """The same for rows of a file.

        Args:
            columns: which of the table's columns the model is given; see `RunData.input_columns`.
            progress: called with the number of rows that were just finished.
        """
        if self.task == "multiple-choice":
            return predict_choices(self.model, self.processor, table, columns, batch_size, progress)
        data = self.data.prepare_unlabeled(table, columns)
        return predict_classes(self.model, data.examples, data.collate, self.labels or [], batch_size, progress)

    def export(
        self, output: str | os.PathLike[str], format: Literal["peft", "merged", "gguf"], *, converter: str | None = None,
        dtype: str | None = None,
    ) -> tuple[Proof, str]:  # fmt: skip
        """Write the adapter for other tools. It appears only if what was written gives the adapter's logits when read back.

        Args:
            output: the directory (gguf: the file) to write.
            format: peft (the files of the adapter alone), merged (W + BA as one model) or gguf (for llama.cpp).
            converter: path of llama.cpp's convert_lora_to_gguf.py, for gguf; see `export.gguf`.
            dtype: of the weights in a merged model, float32, bfloat16 or float16; by default each keeps the dtype in which
                the base stores it. The sum W + BA is formed in float32 and rounded once.

        Returns:
            the comparison of logits, and the name of the inputs that were compared.

        Raises:
            MergeError: the method or the base cannot be merged, the adapter is untrained, or the logits differ.
            ModelError: the base is not the one that the adapter was trained on.
            ConfigError: an unknown dtype, or a dtype with another format than merged.
        """
        if dtype is not None and format != "merged":
            raise ConfigError(f"dtype is for merged models, not for {format}", remedy="leave it out")
        if dtype is not None and dtype not in _MERGED_DTYPES:
            raise ConfigError(f"unknown dtype {dtype!r}", remedy=did_you_mean(dtype, _MERGED_DTYPES))
        if format == "merged" and getattr(AutoConfig.from_pretrained(self.base_path), "quantization_config", None) is not None:
            raise MergeError(
                "the base is quantized, and in a merged model rounding would destroy most of what was learned",
                where=self.base_path,
                remedy="export the adapter alone (peft), or merge into the model before quantization "
                "(--model DIR --allow-other-base)",
            )
        if self.labels is not None:
            self._check_saved(self._load(self.dtype).new, strictly=True)
        inputs, source = self.data.example_inputs()
        adapter, target = self.directory, Path(output)
        if format == "gguf":
            settings: Any = {"base": self.base_path, "converter": converter}
            proof = export_gguf(adapter, target, load_base=self.base, inputs=inputs, **settings)
        elif format == "merged":
            proof = self._merge(target, inputs, None if dtype is None else getattr(torch, dtype))
        else:
            proof = export_peft(adapter, target, load_base=self.base, inputs=inputs, tokenizer=self.processor)
        return proof, source

    def _merge(self, target: Path, inputs: list[dict[str, torch.Tensor]], dtype: torch.dtype | None) -> Proof:
        if dtype is None and stored_dtype(self.base_path) is None:
            self.base()  # a model of the hub that has to be downloaded first
        stored = stored_dtypes(self.base_path) if dtype is None else {}
        dtype = dtype or stored_dtype(self.base_path) or self.dtype
        exact = functools.reduce(torch.promote_types, stored.values(), torch.promote_types(dtype, self.dtype))
        return export_merged(
            self.directory, target, load_base=lambda: self._load(exact).model, inputs=inputs, tokenizer=self.processor,
            dtype=dtype, stored=stored,
        )  # fmt: skip

    def require_language_model(self) -> None:
        """Raise `ConfigError` for a classifier."""
        if self.task not in LANGUAGE:
            remedy = "evaluate it, without --generate and --lm-eval"
            raise ConfigError(f"a model for {self.task} generates no text", where=str(self.directory), remedy=remedy)

    @cached_property
    def data(self) -> RunData:
        """The rows of the run, and how rows become examples."""
        return RunData(self.config, self.task, self.labels, self.processor, self.limits)
