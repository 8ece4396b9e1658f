"""Both models asked the same rows: which question goes with which kind of task."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from ..data.forms import Columns
from ..errors import ConfigError, DataError
from ..evaluation.answers import classify, language_loss
from ..evaluation.choice import choose
from ..evaluation.generation import generate_answers
from ..evaluation.metrics import Evaluation, exact_match, paired_difference, paired_losses
from .runs import OpenRun, chat_messages


@dataclass(frozen=True)
class Answers:
    """What the base and the tuned model answered."""

    base: Evaluation
    tuned: Evaluation

    @property
    def base_items(self) -> dict[int, dict[str, Any]]:
        """The base's answers by row."""
        return {item["row"]: item for item in self.base.items}

    @property
    def tuned_items(self) -> dict[int, dict[str, Any]]:
        """The tuned model's answers by row."""
        return {item["row"]: item for item in self.tuned.items}


def ask_both(run: OpenRun, model: Any, rows: Any, columns: Columns, *, generate: bool, batch_size: int) -> Answers:
    """Ask the adapted model, and the same model with the adapter switched off.

    Args:
        model: `run.load()`.
        rows: a Table.
        generate: also let them answer freely.
    """
    if run.kind == "multiple-choice":
        examples, collate = None, None
    else:
        examples, collate = _examples(run, model, rows, columns)

    def ask(which: str) -> Evaluation:
        with tqdm(desc=f"asking the {which} model", unit="row", file=sys.stderr, leave=False) as bar:
            if run.kind == "multiple-choice":
                parts = [rows.columns[name] for name in (columns.prompt, columns.choices, columns.answer)]
                return choose(
                    model, run.processor, *parts, batch_size=batch_size, generate=generate, tick=bar.update
                )  # fmt: skip
            assert collate is not None
            if run.labels is not None:
                return classify(model, examples, collate, run.labels, batch_size, bar.update)
            found = language_loss(model, examples, collate, batch_size, bar.update)
            if not generate:
                return found
            prompts, references = _questions(run, rows, columns)
            said = generate_answers(model, run.processor, prompts, batch_size=batch_size, tick=bar.update)
            return _joined(found, exact_match(said, references))

    with model.disable_adapter():
        base = ask("base")
    return Answers(base, ask("tuned"))


def _examples(run: OpenRun, model: Any, rows: Any, columns: Columns) -> tuple[Any, Any]:
    from ..data.examples import build_examples, collator  # pyright: ignore[reportMissingImports]

    examples = build_examples(run.kind, rows, columns, processor=run.processor, names=run.labels, max_length=run.max_length)
    if run.labels is None and "input_ids" not in examples.column_names:
        examples = _tokenised(run, model, examples)
    return examples, collator(run.kind, run.processor)


def _tokenised(run: OpenRun, model: Any, examples: Any) -> Any:
    """As TRL's trainer tokenises and masks them for training: by that trainer."""
    from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportPrivateImportUsage]

    with tempfile.TemporaryDirectory() as scratch:
        settings = SFTConfig(
            output_dir=scratch, max_length=run.max_length, report_to="none", gradient_checkpointing=False, bf16=False
        )
        trainer: Any = SFTTrainer(model, args=settings, train_dataset=examples, processing_class=run.processor)
    return trainer.train_dataset


def _questions(run: OpenRun, rows: Any, columns: Columns) -> tuple[list[Any], list[str]]:
    """The prompts, and what is to be answered: the completion, or the last turn of the assistant."""
    if columns.messages is not None:
        prompts: list[Any] = []
        references: list[str] = []
        for row, value in enumerate(rows.columns[columns.messages]):
            turns = chat_messages(value)
            if not turns or turns[-1]["role"] != "assistant":
                raise DataError(
                    "the conversation does not end with the assistant's turn",
                    where=rows.where(row),
                    remedy="leave --generate out, or mend the row",
                )
            prompts.append(turns[:-1])
            references.append(turns[-1]["content"])
        return prompts, references
    if columns.prompt is None or columns.completion is None:
        raise ConfigError(
            "--generate needs prompts and answers, and these rows are plain text",
            where=rows.source,
            remedy="leave it out, or give --prompt-column and --completion-column",
        )
    return rows.columns[columns.prompt], rows.columns[columns.completion]


def _joined(one: Evaluation, other: Evaluation) -> Evaluation:
    """Metrics of both, and the items of one row in one."""
    known = {item["row"]: item for item in one.items}
    return Evaluation(one.metrics | other.metrics, [known.get(item["row"], {}) | item for item in other.items])


def compare(answers: Answers) -> dict[str, float]:
    """The paired difference: of right answers where there are such, else of the losses."""
    base, tuned = answers.base.items, answers.tuned.items
    if "correct" in base[0]:
        return paired_difference([item["correct"] for item in base], [item["correct"] for item in tuned])
    both = [(b["loss"], t["loss"]) for b, t in zip(base, tuned, strict=True) if b["loss"] is not None]
    return paired_losses([b for b, _ in both], [t for _, t in both])
