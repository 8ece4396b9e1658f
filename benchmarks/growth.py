"""How the cost of a step grows with hidden size, layers, rank and tokens: table and plot of the `stacks` records."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import numpy as np

from .measuring import Record, duration, paired
from .stacks import CENTER, SERIES, Point, find

ARMS = {
    "allora": "ALLoRA",
    "allora-default": "ALLoRA, no oneDNN",
    "peft-lora": "PEFT LoRA",
    "peft-lora-dropout": "PEFT LoRA, dropout .05",
    "peft-dora": "PEFT DoRA",
}
IN_TABLE = ("allora", "allora-default", "peft-lora")
"""Arms that the table shows; the plots show all of `ARMS`."""
VARIED = {"width": "hidden size", "layers": "layers", "r": "rank", "tokens": "tokens"}
"""Series of eager float32 steps, which the plots show."""


def measured(record: Record, series: str) -> list[tuple[Point, Record]]:
    """The points of a series that the record has."""
    found = [(point, find(record, point)) for point in SERIES[series]]
    return [(point, result) for point, result in found if result is not None]


def table(records: dict[str, Record]) -> str:
    """A Markdown table with a row for each point and, for each record, the frozen time and the arms as multiples of it."""
    heads = [f"{kind}: frozen | {' | '.join(ARMS[arm] for arm in IN_TABLE)}" for kind in records]
    lines = [f"| | FLOP ratio | {' | '.join(heads)} |"]
    lines.append("|---" * (2 + len(records) * (1 + len(IN_TABLE))) + "|")
    for point, title in _titles().items():
        results = [find(record, point) for record in records.values()]
        flops = next((result["floor"]["ratio"] for result in results if result is not None), None)
        if flops is not None:
            cells = [cell for result in results for cell in _cells(result)]
            lines.append(f"| {title} | {flops:.3f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _titles() -> dict[Point, str]:
    """Every point with its title. The center, which is in several series, comes first."""
    titles = {CENTER: "center"}
    for series, points in SERIES.items():
        for point in points:
            if series == "compiled":
                title = f"`torch.compile`, {point.dtype}"
            elif series == "bfloat16":
                title = f"bfloat16, hidden size {point.width}"
            else:
                title = f"{VARIED[series]} {getattr(point, series)}"
            titles.setdefault(point, title)
    return titles


def _cells(result: Record | None) -> list[str]:
    if result is None:
        return [""] * (1 + len(IN_TABLE))
    seconds = result["seconds"]
    return [duration(statistics.median(seconds["frozen"])), *(f"{paired(seconds, arm, 'frozen')[1]:.2f}" for arm in IN_TABLE)]


def slower(record: Record, other: str = "peft-lora") -> list[tuple[str, float]]:
    """The points at which ALLoRA takes longer than another arm, and how many times as long."""
    results = [(title, find(record, point)) for point, title in _titles().items()]
    ratios = [(title, paired(result["seconds"], "allora", other)[1]) for title, result in results if result is not None]
    return [(title, ratio) for title, ratio in ratios if ratio > 1]


def draw(record: Record, path: Path) -> None:
    """Plot multiples of the frozen step by hidden size, layers, rank and tokens. Bars are quartiles over the rounds."""
    from matplotlib.figure import Figure  # not pyplot: no window and no global state

    shown = [series for series in VARIED if len(measured(record, series)) > 1]
    figure = Figure(figsize=(4.5 * min(len(shown), 2), 3 * -(-len(shown) // 2)), layout="constrained")
    grid = figure.subplots(-(-len(shown) // 2), min(len(shown), 2), sharey=True, squeeze=False)
    for axes, series in zip(grid.flat, shown, strict=False):
        results = measured(record, series)
        x = [getattr(point, series) for point, _ in results]
        for k, (arm, title) in enumerate(ARMS.items()):
            low, middle, high = zip(*(paired(r["seconds"], arm, "frozen") for _, r in results), strict=True)
            spread: Any = [np.subtract(middle, low), np.subtract(high, middle)]
            axes.errorbar(x, middle, yerr=spread, fmt="o-", ms=4, lw=1.4, color=f"C{k}", label=title)
        axes.plot(x, [r["floor"]["ratio"] for _, r in results], "--", lw=1, color="0.4", label="FLOP ratio")
        axes.axhline(1, lw=0.8, color="0.7")
        axes.set_xscale("log", base=2)
        axes.set_xticks(x, [str(value) for value in x])
        axes.minorticks_off()
        axes.set_xlabel(VARIED[series])
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False, fontsize=8)
    figure.supylabel("multiple of the frozen step")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
