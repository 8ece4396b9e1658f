"""Both models asked the same rows."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm
from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportPrivateImportUsage] (its lazy exports)

from ..data.examples import build_examples, collator
from ..data.forms import Columns
from ..data.table import Table
from ..evaluation.ask import Asked, ask
from ..evaluation.metrics import Evaluation, paired_difference, paired_losses
from ..training.processes import on_cpu
from .runs import OpenRun


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


def ask_both(run: OpenRun, model: Any, rows: Table, columns: Columns, *, generate: bool, batch_size: int) -> Answers:
    """Ask the adapted model, and the same model with the adapter switched off.

    Args:
        model: `run.load()`.
        generate: also let them answer freely.
    """
    asked = _asked(run, model, rows, columns)

    def answer(which: str) -> Evaluation:
        with tqdm(desc=f"asking the {which} model", unit="row", file=sys.stderr, leave=False) as bar:
            return ask(asked, model, run.processor, batch_size=batch_size, generate=generate, tick=bar.update)

    with model.disable_adapter():
        base = answer("base")
    return Answers(base, answer("tuned"))


def _asked(run: OpenRun, model: Any, rows: Table, columns: Columns) -> Asked:
    examples = build_examples(run.kind, rows, columns, processor=run.processor, names=run.labels, max_length=run.max_length)
    if run.labels is not None:
        return Asked(run.kind, rows, columns, examples, collator(run.kind, run.processor), run.labels)
    with tempfile.TemporaryDirectory() as scratch:  # as training tokenizes, masks and batches them: by its trainer
        settings = SFTConfig(
            output_dir=scratch, max_length=run.max_length, report_to="none", gradient_checkpointing=False, bf16=False,
            use_cpu=on_cpu(),
        )  # fmt: skip
        trainer: Any = SFTTrainer(model, args=settings, train_dataset=examples, processing_class=run.processor)
    return Asked(run.kind, rows, columns, trainer.train_dataset, trainer.data_collator, None)


def compare(answers: Answers) -> dict[str, float]:
    """The paired difference: of right answers where there are such, else of the losses."""
    base, tuned = answers.base.items, answers.tuned.items
    if "correct" in base[0]:
        return paired_difference([item["correct"] for item in base], [item["correct"] for item in tuned])
    both = [(b["loss"], t["loss"]) for b, t in zip(base, tuned, strict=True) if b["loss"] is not None]
    return paired_losses([b for b, _ in both], [t for _, t in both])
