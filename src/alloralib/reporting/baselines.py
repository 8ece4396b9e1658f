"""What a run's record says about the baselines, in words."""

from __future__ import annotations

import math

from ..records import RunRecord

CHANCE = 0.05
"""A difference with a larger p-value is within chance."""


def answers(record: RunRecord) -> dict[str, dict[str, float]]:
    """The metrics of everything that answered the test rows, by name: the baselines from the worst to the best, the model
    before training, and after it."""
    known = {"majority": {"accuracy": record.data["majority"]}} if "majority" in record.data else {}  # a record of 0.2.0
    ranked = sorted((known | record.baselines).items(), key=lambda item: _gain(record, item[1]))
    return dict(ranked) | {when: record.metrics[when] for when in ("before", "after")}


def shortfall(record: RunRecord) -> str | None:
    """A sentence if the trained model is not better than the best baseline, and what to do; None if it is, or there is none.

    Classifiers and multiple choice are compared by accuracy, other language models by loss.
    """
    if not record.baselines:
        return None
    name, best = max(record.baselines.items(), key=lambda item: _gain(record, item[1]))
    difference, p = best["difference"], best["p_value"]
    if difference is None:  # of a loss that is not finite
        return None
    if (difference > 0) if _by_accuracy(record) else (difference < 0):
        return None
    doubt = f"within chance, p = {p:.2g}" if p > CHANCE else f"p = {p:.2g}"
    if not _by_accuracy(record):
        how = "equal to" if difference == 0 else f"{difference:.4f} above"
        compared = f"the trained model's loss is {how} that of the base model {name} ({doubt})"
    else:
        how = "equal to" if difference == 0 else f"{-100 * difference:.1f} points below"
        compared = f"the trained model is {how} {name} ({doubt})"
    simpler = f"use {name}, which is simpler"
    if name.endswith("-shot"):
        simpler = f"put {name.removesuffix('-shot')} examples into the base model's prompt, which needs no training"
    return f"{compared}: train longer (--epochs), try another --learning-rate, give more rows, or {simpler}"


def _by_accuracy(record: RunRecord) -> bool:
    return "accuracy" in record.metrics["after"]


def _gain(record: RunRecord, metrics: dict[str, float]) -> float:
    """How good an answer is, to compare it with others: larger is better."""
    if _by_accuracy(record):
        return metrics["accuracy"]
    return -math.inf if metrics["loss"] is None else -metrics["loss"]
