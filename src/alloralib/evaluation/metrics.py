"""Numbers taken from answers: accuracy with its interval, macro-F1, exact match, perplexity. numpy at most."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Evaluation:
    """What came of asking a model.

    Attributes:
        metrics: by name; `accuracy_low` and `accuracy_high` are the ends of the 95 % interval of `accuracy`.
        items: one per row, in the order of the rows, each with `row` (0-based) and what the model answered.
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
    return min(max(low, 0.0), p), max(min(high, 1.0), p)  # round-off must not put p outside


def share(name: str, correct: Sequence[bool]) -> dict[str, float]:
    """A share of right answers under `name`, with its 95 % interval; 0 of 0 is 0, in [0, 1].

    >>> {key: round(value, 3) for key, value in share("accuracy", [True, True, False]).items()}
    {'accuracy': 0.667, 'accuracy_low': 0.208, 'accuracy_high': 0.939}
    """
    right, total = sum(map(bool, correct)), len(correct)
    low, high = wilson_interval(right, total)
    return {name: right / max(total, 1), f"{name}_low": low, f"{name}_high": high}


def classification_metrics(predicted: NDArray[np.int64], truth: NDArray[np.int64], classes: int) -> dict[str, float]:
    """Accuracy with its 95 % interval, macro-F1 and balanced accuracy.

    Macro-F1 averages over the classes that occur in either array, balanced accuracy (the mean recall) over those that
    occur in `truth`.

    Args:
        predicted, truth: (N,), class indices.
        classes: number of classes.
    """
    table = np.zeros((classes, classes), dtype=np.int64)  # row: truth, column: predicted
    np.add.at(table, (truth, predicted), 1)
    hits, true, said = table.diagonal(), table.sum(axis=1), table.sum(axis=0)
    either, there = true + said > 0, true > 0
    return {
        **share("accuracy", (predicted == truth).tolist()),
        "macro_f1": float(np.mean(2 * hits[either] / (true + said)[either])) if either.any() else 0.0,
        "balanced_accuracy": float(np.mean(hits[there] / true[there])) if there.any() else 0.0,
    }


def normalize(text: str) -> str:
    """Text as `exact_match` compares it: case folded, every run of white space one space, none at the ends.

    >>> normalize("  The  Eagle\\n")
    'the eagle'
    """
    return " ".join(text.casefold().split())


def exact_match(answers: Sequence[str], references: Sequence[str | Sequence[str]]) -> Evaluation:
    """The share of answers that equal a reference, after `normalize`, with its 95 % interval.

    Args:
        answers: (N,).
        references: (N,), each a text or several, one of which is enough.
    """
    items: list[dict[str, Any]] = []
    for row, (answer, given) in enumerate(zip(answers, references, strict=True)):
        accepted = [given] if isinstance(given, str) else list(given)
        correct = normalize(answer) in {normalize(reference) for reference in accepted}
        items.append({"row": row, "answer": answer, "references": accepted, "correct": correct})
    return Evaluation(share("exact_match", [item["correct"] for item in items]), items)


def paired_difference(before: Sequence[bool], after: Sequence[bool]) -> dict[str, float]:
    """What changed between two sets of answers to the same questions: McNemar's table and his exact test.

    Args:
        before, after: (N,), whether each answer was right.

    Returns:
        counts `both_right`, `both_wrong`, `only_before`, `only_after`; `difference` of the shares; `p_value`, two-sided,
        of the binomial test that a change goes either way with equal chance (McNemar 1947).

    >>> paired_difference([True, False, False, False], [True, True, True, False])["p_value"]
    0.5
    """
    table = {"both_right": 0, "both_wrong": 0, "only_before": 0, "only_after": 0}
    for b, a in zip(before, after, strict=True):
        table["both_right" if a and b else "only_after" if a else "only_before" if b else "both_wrong"] += 1
    difference = (table["only_after"] - table["only_before"]) / max(len(before), 1)
    return {**table, "difference": difference, "p_value": sign_test(table["only_before"], table["only_after"])}


def paired_losses(before: Sequence[float], after: Sequence[float]) -> dict[str, float]:
    """What changed between two losses of the same rows.

    Returns:
        counts `lower` and `higher` (after against before), the mean `difference`, and the `p_value` of the sign test.
    """
    lower = sum(a < b for b, a in zip(before, after, strict=True))
    higher = sum(a > b for b, a in zip(before, after, strict=True))
    difference = (math.fsum(after) - math.fsum(before)) / max(len(before), 1)
    return {"lower": lower, "higher": higher, "difference": difference, "p_value": sign_test(lower, higher)}


def sign_test(one: int, other: int) -> float:
    """The two-sided exact probability of a split at least as uneven, were either side as likely.

    >>> sign_test(0, 5)
    0.0625
    """
    total = one + other
    tail = 2 * sum(math.comb(total, k) for k in range(min(one, other) + 1))
    return min(1.0, tail / 2**total)  # whole numbers: exact, and no overflow


def ratio_interval(totals: NDArray[np.float64], counts: NDArray[np.int64], z: float = 1.959963984540054) -> tuple[float, float]:
    """Interval for a ratio of sums, sum(totals) / sum(counts), over rows; 95 % by default.

    Rows are what was drawn, so tokens of one row count together: the ratio estimator's linearised standard error
    (Cochran, Sampling Techniques, 3rd edition, section 2.11).

    Args:
        totals, counts: (N,), per row.

    >>> low, high = ratio_interval(np.array([2.0, 4.0, 3.0]), np.array([1, 2, 1]))
    >>> low < 9 / 4 < high
    True
    """
    rows, whole = len(counts), float(counts.sum())
    if rows < 2 or whole == 0:
        return -math.inf, math.inf
    ratio = float(totals.sum()) / whole
    residuals = totals - ratio * counts
    half = z * math.sqrt(rows / (rows - 1) * float((residuals**2).sum())) / whole
    return ratio - half, ratio + half


def perplexity(mean_loss: float) -> float:
    """exp of the mean loss per token, infinite where that overflows."""
    return math.exp(mean_loss) if mean_loss < 700 else math.inf
