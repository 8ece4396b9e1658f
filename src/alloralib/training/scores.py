"""How a run is judged: the metrics of its kind of task, on the test rows before and after, on validation rows between."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

from ..data.labels import label_names, labels, majority_share
from ..data.parts import Parts
from ..data.registry import REGISTRY
from ..data.table import Table
from ..evaluation.evaluate import EvaluationData, evaluate_examples
from ..evaluation.metrics import Evaluation
from .compiling import eagerly
from .config import RunConfig


class Scorer:
    """Answers of the model as it is, on the parts of a run's data.

    Args:
        examples: of every part, as the model takes them.

    Attributes:
        majority: share of the most frequent class among the test rows; None where there are no classes.
    """

    def __init__(
        self, config: RunConfig, trainer: Any, processor: Any, parts: Parts, examples: dict[str, Any], names: list[str] | None
    ) -> None:
        self.config, self.trainer, self.processor, self.parts, self.names = config, trainer, processor, parts, names
        self.examples = examples
        self.majority = None if names is None else majority_share(labels(parts.test, config.columns.label or "label"))

    def test(self, when: str) -> Evaluation:
        """Metrics and answers on the test rows."""
        return self._score(self.parts.test, "test", f"evaluating {when}", full=True)

    def validate(self) -> dict[str, float]:
        """Metrics on the validation rows, among them `loss`."""
        assert self.parts.validation is not None
        return self._score(self.parts.validation, "validation", "validating", full=False).metrics

    def _score(self, table: Table, name: str, title: str, *, full: bool) -> Evaluation:
        data = EvaluationData(
            self.config.kind, table, self.config.columns, self.examples[name], self.trainer.plain_collator, self.names
        )
        total = len(table) * (2 if full and self.config.task == "multiple-choice" else 1)
        bar = tqdm(
            total=total, desc=title, unit="row", file=sys.stderr, leave=False, disable=not self.trainer.is_world_process_zero()
        )
        with eagerly(self.config.compile), bar:
            return evaluate_examples(
                data, self.trainer.model, self.processor, batch_size=self.config.batch_size, choices=full, progress=bar.update
            )  # fmt: skip


def describe_labels(config: RunConfig, parts: Parts) -> list[str]:
    """The classes of a run, in the order of the logits: those a registered set declares, else those of the training rows.

    Raises:
        DataError: fewer than two.
    """
    known = REGISTRY.get(config.data)
    if known is not None and known.labels:
        return list(known.labels)
    return label_names(parts.train, config.columns.label or "label")
