"""What a run's record says about the baselines, in words."""

from __future__ import annotations

from ..records import RunRecord

CHANCE = 0.05
"""A difference with a larger p-value is within chance."""


def answers(record: RunRecord) -> dict[str, dict[str, float]]:
    """The metrics of everything that answered the test rows, by name: the baselines from the least accurate to the most, the
    model before training, and after it."""
    known = {"majority": {"accuracy": record.data["majority"]}} if "majority" in record.data else {}  # a record of 0.2.0
    ranked = sorted((known | record.baselines).items(), key=lambda item: item[1]["accuracy"])
    return dict(ranked) | {when: record.metrics[when] for when in ("before", "after")}


def shortfall(record: RunRecord) -> str | None:
    """A sentence if the trained model is not above the best baseline, and what to do; None if it is, or there is none."""
    if not record.baselines:
        return None
    name, best = max(record.baselines.items(), key=lambda item: item[1]["accuracy"])
    points, p = 100 * best["difference"], best["p_value"]
    if points > 0:
        return None
    how = "equal to" if points == 0 else f"{-points:.1f} points below"
    doubt = f"within chance, p = {p:.2g}" if p > CHANCE else f"p = {p:.2g}"
    return (
        f"the trained model is {how} {name} ({doubt}): train longer (--epochs), try another --learning-rate, "
        f"give more rows, or use {name}, which is simpler"
    )
