"""What the pictures of several studies share: axes, files, curves and tables. Uses no torch."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def axes_grid(rows: int, columns: int, *, size: tuple[float, float], **settings: Any) -> tuple[Any, Any]:
    """A figure and its axes, rows by columns, `size` inches each."""
    from matplotlib.figure import Figure  # not pyplot, which may open windows and keeps global state

    figure = Figure(figsize=(columns * size[0], rows * size[1]), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **settings)
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=7)
    return figure, axes


def save(figure: Any, path: Path) -> None:
    """Write a PNG with at most 128 colors, which is a third of the size of the full one."""
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    with Image.open(buffer) as image:
        image.convert("RGB").quantize(128).save(path, format="PNG", optimize=True)


def average(values: Iterable[float]) -> float:
    """The mean."""
    found = list(values)
    return sum(found) / len(found)


def deviation(values: Sequence[float]) -> float:
    """The standard deviation with n - 1; 0 for a single value."""
    mean = average(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / max(len(values) - 1, 1))


def mean_curve(curves: Iterable[Sequence[float]]) -> list[float]:
    """The mean of curves of equal length, point by point."""
    return [sum(values) / len(values) for values in zip(*curves, strict=True)]


def rate_colors(rates: Sequence[float]) -> list[Any]:
    """A color for each dropout rate, dark for 0."""
    from matplotlib import colormaps

    top = max(rates) or 1
    return [colormaps["viridis"](0.95 * rate / top) for rate in rates]


def draw_runs(ax: Any, steps: Sequence[int], curves: Sequence[Sequence[float]], color: str, label: str) -> None:
    """A thin line per run and a thick one for their mean."""
    for curve in curves:
        ax.plot(steps, curve, lw=0.4, alpha=0.4, color=color)
    ax.plot(steps, mean_curve(curves), lw=1.4, color=color, label=label)


def draw_dots(ax: Any, place: float, values: Sequence[float], color: str, label: str | None = None) -> None:
    """A dot per value and a bar for their mean, above one place of the axis."""
    ax.plot([place] * len(values), values, ".", color=color)
    ax.plot([place - 0.3, place + 0.3], [average(values)] * 2, color=color, label=label)


def plus_minus(values: Sequence[float], *, signed: bool = False) -> str:
    """The mean and the standard deviation as text."""
    mean = average(values)
    return f"{mean:+.2f} ± {deviation(values):.2f}" if signed else f"{mean:.2f} ± {deviation(values):.2f}"


def draw_table(
    ax: Any,
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    bold: Iterable[tuple[int, int]] = (),
    colors: dict[tuple[int, int], Any] | None = None,
) -> None:
    """Put a table into an axis.

    Args:
        ax: the axis.
        head: the columns' titles.
        rows: texts, each row as long as `head`.
        bold: (row, column) of the texts in bold, from 0.
        colors: (row, column) -> background.
    """
    ax.axis("off")
    drawn = ax.table([list(row) for row in rows], colLabels=list(head), loc="center", cellLoc="center")
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(7.5)
    drawn.auto_set_column_width(list(range(len(head))))
    for (row, _), cell in drawn.get_celld().items():
        cell.set_linewidth(0.3)
        cell.set_height(1 / (len(rows) + 1))
        if row == 0:
            cell.set_facecolor("0.93")
    for row, column in bold:
        drawn[row + 1, column].get_text().set_fontweight("bold")
    for (row, column), color in (colors or {}).items():
        drawn[row + 1, column].set_facecolor(color)


def save_table(head: Sequence[str], rows: Sequence[Sequence[str]], path: Path, **marks: Any) -> None:
    """Write a picture of a table alone; arguments as in `draw_table`."""
    figure, axes = axes_grid(1, 1, size=(1.1 * len(head), 0.24 * (len(rows) + 2)))
    draw_table(axes[0][0], head, rows, **marks)
    save(figure, path)
