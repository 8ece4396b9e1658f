"""Metrics of answers: accuracy with its interval, macro-F1, exact match, perplexity. Imports numpy only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Evaluation:
    """The result of evaluating a model on the rows of a table.

    Attributes:
        metrics: by name. `accuracy_low` and `accuracy_high` are the ends of the 95 % interval of `accuracy`.
        items: one per row, in the order of the rows, with `row` (0-based) and the model's answer.
    """

    metrics: dict[str, float]
    items: list[dict[str, Any]]


def wilson_interval(correct: int, total: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's score interval for a proportion (Wilson 1927); 95 % by default.

    >>> [round(x, 4) for x in wilson_interval(8, 10)]
    [0.4902, 0.9433]
    """
    if total == 0:
        return 0.0, 1.0
    p = correct / total
    center = p + z * z / (2 * total)
    half = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    low, high = (center - half) / (1 + z * z / total), (center + half) / (1 + z * z / total)
    return min(max(low, 0.0), p), max(min(high, 1.0), p)  # rounding errors must not exclude p


def proportion(name: str, correct: Sequence[bool]) -> dict[str, float]:
    """The proportion of right answers, with its 95 % interval, as three metrics. Without answers it is 0, in [0, 1].

    >>> {key: round(value, 3) for key, value in proportion("accuracy", [True, True, False]).items()}
    {'accuracy': 0.667, 'accuracy_low': 0.208, 'accuracy_high': 0.939}
    """
    right, total = sum(map(bool, correct)), len(correct)
    low, high = wilson_interval(right, total)
    return {name: right / max(total, 1), f"{name}_low": low, f"{name}_high": high}


def classification_metrics(predicted: NDArray[np.int64], truth: NDArray[np.int64], classes: int) -> dict[str, float]:
    """Accuracy with its 95 % interval, macro-F1 and balanced accuracy.

    Args:
        predicted, truth: (N,), class indices. Macro-F1 is the mean over the classes that occur in either array, balanced
            accuracy the mean recall over the classes that occur in `truth`.
        classes: number of classes.
    """
    confusion = np.zeros((classes, classes), dtype=np.int64)  # row: truth, column: predicted
    np.add.at(confusion, (truth, predicted), 1)
    hits, true, answered = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    in_either, in_truth = true + answered > 0, true > 0
    return {
        **proportion("accuracy", (predicted == truth).tolist()),
        "macro_f1": float(np.mean(2 * hits[in_either] / (true + answered)[in_either])) if in_either.any() else 0.0,
        "balanced_accuracy": float(np.mean(hits[in_truth] / true[in_truth])) if in_truth.any() else 0.0,
    }


def normalize(text: str) -> str:
    """Text as `exact_match` compares it: case folded, runs of white space as one space, none at the ends.

    >>> normalize("  The  Eagle\\n")
    'the eagle'
    """
    return " ".join(text.casefold().split())


def exact_match(answers: Sequence[str], references: Sequence[str | Sequence[str]]) -> Evaluation:
    """The proportion of answers that equal a reference after `normalize`, with its 95 % interval.

    Args:
        answers: (N,).
        references: (N,), each a text, or several texts of which any is right.
    """
    items: list[dict[str, Any]] = []
    for row, (answer, given) in enumerate(zip(answers, references, strict=True)):
        accepted = [given] if isinstance(given, str) else list(given)
        correct = normalize(answer) in {normalize(reference) for reference in accepted}
        items.append({"row": row, "answer": answer, "references": accepted, "correct": correct})
    return Evaluation(proportion("exact_match", [item["correct"] for item in items]), items)


def ratio_interval(totals: NDArray[np.float64], counts: NDArray[np.int64], z: float = 1.959963984540054) -> tuple[float, float]:
    """An interval for sum(totals) / sum(counts); 95 % by default.

    The rows are the sample, not their tokens, which depend on each other. It uses the linearized standard error of the
    ratio estimator (Cochran, Sampling Techniques, 3rd edition, section 2.11).

    Args:
        totals, counts: (N,), per row.

    >>> low, high = ratio_interval(np.array([2.0, 4.0, 3.0]), np.array([1, 2, 1]))
    >>> low < 9 / 4 < high
    True
    """
    rows, total = len(counts), float(counts.sum())
    if rows < 2 or total == 0:
        return -math.inf, math.inf
    ratio = float(totals.sum()) / total
    residuals = totals - ratio * counts
    half = z * math.sqrt(rows / (rows - 1) * float((residuals**2).sum())) / total
    return ratio - half, ratio + half


def perplexity(mean_loss: float) -> float:
    """exp of the mean loss in nats per token; infinity if that overflows."""
    return math.exp(mean_loss) if mean_loss < 700 else math.inf
