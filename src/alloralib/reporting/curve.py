"""The loss curve of a run, from its record."""

from __future__ import annotations

import os

from ..records import RunRecord


def draw_loss(record: RunRecord, path: str | os.PathLike[str]) -> None:
    """Draw the training and validation loss of a finished run by optimizer step, and the learning rate below, as a PNG."""
    from matplotlib.figure import Figure  # not pyplot, which opens windows and has global state

    steps = [entry["step"] for entry in record.history]
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    losses, rates = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    losses.plot(steps, [entry["loss"] for entry in record.history], lw=0.8, alpha=0.35, color="C0", label="batch")
    losses.plot(steps, smooth([entry["loss"] for entry in record.history]), lw=1.8, color="C0", label="moving average")
    validation = record.validation["history"]
    if validation:
        losses.plot(
            [e["step"] for e in validation], [e["loss"] for e in validation], "o-", ms=4, lw=1.2, color="C3", label="validation"
        )
    losses.set_ylabel("loss")
    losses.set_ylim(bottom=0)
    losses.legend(frameon=False)
    losses.set_title(f"{record.adapter['method']}, {record.model['name']}, {record.data['train']['source']}", loc="left")
    rates.plot(steps, [entry["learning_rate"] for entry in record.history], lw=1.2, color="C1")
    rates.set_ylabel("learning rate")
    rates.set_xlabel("optimizer step")
    rates.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    for axes in (losses, rates):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150, metadata={"Software": None})


def smooth(values: list[float], memory: float = 0.9) -> list[float]:
    """Exponential moving average, corrected for its start at zero (as Adam's moments are).

    >>> [round(v, 3) for v in smooth([1.0, 1.0, 3.0], memory=0.5)]
    [1.0, 1.0, 2.143]
    """
    total = weight = 0.0
    means: list[float] = []
    for value in values:
        total = memory * total + (1 - memory) * value
        weight = memory * weight + (1 - memory)
        means.append(total / weight)
    return means
