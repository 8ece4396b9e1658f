"""How the cost grows with width, depth, rank and tokens: tables, fits and the picture of the stacks' record. No torch."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import numpy as np

from .measuring import Record, paired
from .stacks import SERIES, Point, find

SHORT = {
    "allora": "ALLoRA",
    "allora-default": "by torch's products",
    "peft-lora": "PEFT LoRA",
    "peft-lora-dropout": "with dropout .05",
    "peft-dora": "PEFT DoRA",
}
VARIED = {"width": "hidden size", "layers": "layers", "r": "rank r", "tokens": "tokens"}
CAPTIONS = {
    "width": "Hidden size",
    "layers": "Layers",
    "r": "Rank",
    "tokens": "Tokens in the batch",
    "bfloat16": "Hidden size, in bfloat16",
    "compiled": "`torch.compile`, at the center",
}

FEWEST, MANY = 3, 10
"""Points of a series that an exponent takes, and points of all that the fit over all takes."""


def measured(record: Record, series: str) -> list[tuple[Point, Record]]:
    """The points of a series that the record has."""
    found = [(point, find(record, point)) for point in SERIES[series]]
    return [(point, result) for point, result in found if result is not None]


def overhead(result: Record, arm: str) -> float:
    """Seconds over the frozen limit: median over the rounds of the difference within one."""
    seconds = result["seconds"]
    return statistics.median(a - b for a, b in zip(seconds[arm], seconds["frozen"], strict=True))


def exponent(x: list[float], y: list[float]) -> float | None:
    """Slope of log y over log x by least squares; None where there are not three positive values."""
    pairs = [(a, b) for a, b in zip(x, y, strict=True) if b > 0]
    if len(pairs) < 3:
        return None
    logs = np.log(np.array(pairs))
    return float(np.polyfit(logs[:, 0], logs[:, 1], 1)[0])


def cost(record: Record, arm: str) -> tuple[float, float, float]:
    """Overhead of an arm over all eager float32 points as seconds = a x layers + b x GFLOP of the adapters.

    Relative errors are made small, not absolute ones, so that the large points do not decide alone.

    Returns:
        a in seconds, b in seconds per GFLOP, and the median relative error of the fit.
    """
    results = [p for p in record["points"] if p["dtype"] == "float32" and not p["compiled"] and overhead(p, arm) > 0]
    y = np.array([overhead(p, arm) for p in results])
    terms = np.array([[p["layers"], p["floor"]["adapters"] / 1e9] for p in results])
    (a, b), *_ = np.linalg.lstsq(terms / y[:, None], np.ones(len(y)), rcond=None)
    return float(a), float(b), float(np.median(np.abs(terms @ [a, b] / y - 1)))


def tables(record: Record) -> str:
    """One Markdown table for each series: times the limit."""
    blocks: list[str] = []
    for series, caption in CAPTIONS.items():
        results = measured(record, series)
        if len(results) < 2:
            continue
        varied = {"bfloat16": "width", "compiled": "dtype"}.get(series, series)
        lines = [
            f"**{caption}.**",
            "",
            f"| {VARIED.get(varied, varied)} | limit | floor | " + " | ".join(SHORT.values()) + " | keeps, of PEFT LoRA's |",
            "|---" * (4 + len(SHORT)) + "|",
        ]
        for point, result in results:
            seconds, kept = result["seconds"], result["kept"]
            cells = [f"{getattr(point, varied)}", f"{statistics.median(seconds['frozen']) * 1000:.0f} ms"]
            cells += [f"{result['floor']['ratio']:.3f}", *(f"{paired(seconds, arm, 'frozen')[1]:.2f}" for arm in SHORT)]
            cells += [f"{kept['allora'] / kept['peft-lora']:.2f}" if kept else ""]
            lines.append("| " + " | ".join(cells) + " |")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def fits(record: Record) -> str:
    """The exponents by series and the cost by arithmetic, in Markdown, of arms that take the limit's own products."""
    arms = {"allora-default": "ALLoRA by torch's products", "peft-lora": SHORT["peft-lora"]}
    lines = ["| grows with | limit | " + " | ".join(f"{title}, above it" for title in arms.values()) + " |", "|---" * 4 + "|"]
    for series, title in VARIED.items():
        results = measured(record, series)
        if len(results) < FEWEST:
            continue
        x = [float(getattr(point, series)) for point, _ in results]
        ys = [[statistics.median(r["seconds"]["frozen"]) for _, r in results]]
        ys += [[overhead(r, arm) for _, r in results] for arm in arms]
        cells = ["" if (p := exponent(x, y)) is None else f"{p:.2f}" for y in ys]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    for arm in arms if len(record["points"]) >= MANY else ():
        a, b, error = cost(record, arm)
        lines += [
            "",
            f"{arms[arm]} above the limit, all eager float32 points: {a * 1000:.1f} ms per layer and {b * 1000:.1f} ms per "
            f"GFLOP of the adapters' products, median error {error:.0%}.",
        ]
    return "\n".join(lines)


def draw(record: Record, path: Path) -> None:
    """Times the limit by width, depth, rank and tokens: lines are arms, bars the quartiles over rounds."""
    from matplotlib.figure import Figure  # no pyplot: no window, no global state

    shown = [series for series in VARIED if len(measured(record, series)) > 1]
    figure = Figure(figsize=(4.5 * min(len(shown), 2), 3 * -(-len(shown) // 2)), layout="constrained")
    grid = figure.subplots(-(-len(shown) // 2), min(len(shown), 2), sharey=True, squeeze=False)
    for axes, series in zip(grid.flat, shown, strict=False):
        results = measured(record, series)
        x = [getattr(point, series) for point, _ in results]
        for k, (arm, title) in enumerate(SHORT.items()):
            low, middle, high = zip(*(paired(r["seconds"], arm, "frozen") for _, r in results), strict=True)
            spread: Any = [np.subtract(middle, low), np.subtract(high, middle)]
            axes.errorbar(x, middle, yerr=spread, fmt="o-", ms=4, lw=1.4, color=f"C{k}", label=title)
        axes.plot(x, [r["floor"]["ratio"] for _, r in results], "--", lw=1, color="0.4", label="ALLoRA's arithmetic")
        axes.axhline(1, lw=0.8, color="0.7")
        axes.set_xscale("log", base=2)
        axes.set_xticks(x, [str(value) for value in x])
        axes.minorticks_off()
        axes.set_xlabel(VARIED[series])
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False, fontsize=8)
    figure.supylabel("times the frozen limit")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
