"""Two evaluations of the same rows: what changed from one to the other, with an exact test. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .metrics import Evaluation


def compare_evaluations(before: Evaluation, after: Evaluation) -> dict[str, float]:
    """The paired difference of the right answers or, where rows have no right answer, of their losses.

    Args:
        before, after: of the same rows, in the same order.

    Returns:
        as `paired_difference` or `paired_losses`. Rows without a loss are left out.
    """
    pairs = list(zip(before.items, after.items, strict=True))
    if "correct" in before.items[0]:
        return paired_difference([b["correct"] for b, _ in pairs], [a["correct"] for _, a in pairs])
    losses = [(b["loss"], a["loss"]) for b, a in pairs if b["loss"] is not None]
    return paired_losses([b for b, _ in losses], [a for _, a in losses])


def paired_difference(before: Sequence[bool], after: Sequence[bool]) -> dict[str, float]:
    """Compare two sets of answers to the same questions, (N,) whether each was right, by McNemar's exact test (1947).

    Returns:
        the counts `both_right`, `both_wrong`, `only_before`, `only_after`; the `difference` of the shares of right
        answers; and the two-sided `p_value` of the binomial test that changes in either direction are equally likely.

    >>> paired_difference([True, False, False, False], [True, True, True, False])["p_value"]
    0.5
    """
    counts = {"both_right": 0, "both_wrong": 0, "only_before": 0, "only_after": 0}
    for b, a in zip(before, after, strict=True):
        counts["both_right" if a and b else "only_after" if a else "only_before" if b else "both_wrong"] += 1
    difference = (counts["only_after"] - counts["only_before"]) / max(len(before), 1)
    return {**counts, "difference": difference, "p_value": sign_test(counts["only_before"], counts["only_after"])}


def paired_losses(before: Sequence[float], after: Sequence[float]) -> dict[str, float]:
    """The counts `lower` and `higher` (after than before), the mean `difference`, and the sign test's `p_value`."""
    lower = sum(a < b for b, a in zip(before, after, strict=True))
    higher = sum(a > b for b, a in zip(before, after, strict=True))
    difference = (math.fsum(after) - math.fsum(before)) / max(len(before), 1)
    return {"lower": lower, "higher": higher, "difference": difference, "p_value": sign_test(lower, higher)}


def sign_test(one: int, other: int) -> float:
    """The exact two-sided p-value of a split into `one` and `other`, if both sides are equally likely.

    >>> sign_test(0, 5)
    0.0625
    """
    total = one + other
    tail = 2 * sum(math.comb(total, k) for k in range(min(one, other) + 1))
    return min(1.0, tail / 2**total)  # integers: exact, and no overflow
