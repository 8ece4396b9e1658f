"""Numbers taken from answers: accuracy with its interval, macro-F1, perplexity. numpy at most."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def wilson_interval(correct: int, total: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's score interval for a proportion (Wilson 1927); 95 % by default.

    >>> [round(x, 4) for x in wilson_interval(8, 10)]
    [0.4902, 0.9433]
    """
    if total == 0:
        return 0.0, 1.0
    p = correct / total
    centre = p + z * z / (2 * total)
    half = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    low, high = (centre - half) / (1 + z * z / total), (centre + half) / (1 + z * z / total)
    return max(low, 0.0), min(high, 1.0)


def classification_metrics(predicted: NDArray[np.int64], truth: NDArray[np.int64], classes: int) -> dict[str, float]:
    """Accuracy with its 95 % interval, and F1 averaged over the classes that occur in either array.

    Args:
        predicted, truth: (N,), class indices.
        classes: number of classes.
    """
    correct = int((predicted == truth).sum())
    low, high = wilson_interval(correct, len(truth))
    scores: list[float] = []
    for c in range(classes):
        hits = int(((predicted == c) & (truth == c)).sum())
        both = int((predicted == c).sum()) + int((truth == c).sum())
        if both:
            scores.append(2 * hits / both)
    return {
        "accuracy": correct / len(truth),
        "accuracy_low": low,
        "accuracy_high": high,
        "macro_f1": float(np.mean(scores)),
    }


def perplexity(mean_loss: float) -> float:
    """exp of the mean loss per token, infinite where that overflows."""
    return math.exp(mean_loss) if mean_loss < 700 else math.inf
