"""Tables of studies as pictures, drawn like the paper's, from the record alone: mean and standard deviation over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .study_figures import Record, average, deviation, grid, results_of, save

Cells = dict[tuple[Any, ...], list[float]]


def draw_accuracies(record: Record, path: Path) -> None:
    """Tables 6 and 7: a row per eta squared and method, a column per model and data set; the best of an eta in bold."""
    columns = list(record["settings"]["columns"])
    found = _grouped(record, "method", "eta2", "column")
    methods = list(dict.fromkeys(method for method, _, _ in found))
    if ("LoRA x eta", 2, columns[0]) in found:  # at eta = 1 it is LoRA
        found |= {("LoRA x eta", 1, c): found["LoRA", 1, c] for c in columns}
    etas = sorted({eta2 for _, eta2, _ in found})
    rows, bold = [], set()
    for eta2 in etas:
        for method in methods:
            rows.append([f"{eta2:g}", method, *(_plus_minus(found[method, eta2, c]) for c in columns)])
        for place, c in enumerate(columns):
            best = max(range(len(methods)), key=lambda m: average(found[methods[m], eta2, c]))
            bold.add((len(rows) - len(methods) + best, place + 2))
    draw_rows(["η²", "method", *columns], rows, path, bold=bold)


def draw_gaps(record: Record, path: Path, pairs: Sequence[tuple[str, str]]) -> None:
    """Tables 2 and 4: a block of columns per pair of methods; green where the first is ahead, red where it is behind."""
    columns = list(record["settings"]["columns"])
    found = _grouped(record, "method", "eta2", "column")
    found |= {("LoRA x eta", 1, c): found["LoRA", 1, c] for c in columns}
    etas = sorted({eta2 for _, eta2, _ in found})
    rows, colours = [], {}
    for a, b in pairs:
        for eta2 in etas:
            row = [f"{a} - {b}", f"{eta2:g}"]
            for c in columns:
                gap = [x - y for x, y in zip(found[a, eta2, c], found[b, eta2, c], strict=True)]
                colours[len(rows), len(row)] = _shade(average(gap))
                row.append(_plus_minus(gap, signed=True))
            rows.append(row)
    draw_rows(["gap, points", "η²", *columns], rows, path, colours=colours)


def draw_table1(record: Record, path: Path) -> None:
    """Table 1: accuracy over rank, a line per method with its deviation; the table below."""
    ranks = record["settings"]["ranks"]
    found = _grouped(record, "method", "rank")
    methods = list(dict.fromkeys(method for method, _ in found))
    figure, axes = grid(2, 1, size=(6, 2.4), height_ratios=[2.2, 1])
    ax, table = axes[0][0], axes[1][0]
    for number, method in enumerate(methods):
        means = [average(found[method, rank]) for rank in ranks]
        ax.errorbar(ranks, means, [deviation(found[method, r]) for r in ranks], fmt="o-", ms=3, lw=1.3, capsize=2,
                    color=f"C{number}", label=method)  # fmt: skip
    ax.set_xscale("log", base=2)
    ax.set_xlabel("rank", fontsize=8)
    ax.set_ylabel("accuracy, %", fontsize=8)
    ax.legend(frameon=False, fontsize=7)
    rows = [[method, *(_plus_minus(found[method, rank]) for rank in ranks)] for method in methods]
    _table(table, ["", *(f"r = {rank}" for rank in ranks)], rows)
    save(figure, path)


def draw_fair(record: Record, path: Path) -> None:
    """Above: accuracy on validation rows over the learning rate, a panel per task. Below: the test scores of each method at its
    own rate."""
    settings = record["settings"]
    tasks, rates = list(settings["tasks"]), settings["rates"]
    methods = list(dict.fromkeys(cell["key"]["method"] for cell in record["cells"]))
    figure, axes = grid(2, len(tasks), size=(4.4, 2.8))
    for (above, below), task in zip(axes.T, tasks, strict=True):
        for number, method in enumerate(methods):
            tuned = [average(r["accuracy"] for r in _of(record, task, method, "tuning", rate)) for rate in rates]
            above.semilogx(rates, tuned, "o-", ms=3, lw=1, color=f"C{number}", label=method)
            scores = [r["accuracy"] for r in _of(record, task, method, "test")]
            below.plot([number] * len(scores), scores, ".", color=f"C{number}")
            below.plot([number - 0.3, number + 0.3], [average(scores)] * 2, color=f"C{number}")
        above.set_title(f"{task}: validation accuracy over the rate", fontsize=8)
        below.set_title(f"{task}: test accuracy at the method's own rate", fontsize=8)
        below.set_xticks(range(len(methods)), methods, rotation=25, ha="right", fontsize=6)
    axes[0][0].legend(frameon=False, fontsize=6)
    save(figure, path)


def _of(record: Record, task: str, method: str, use: str, rate: float | None = None) -> list[dict[str, Any]]:
    wanted = {"task": task, "method": method, "for": use} | ({} if rate is None else {"rate": rate})
    return results_of(record, **wanted)


def draw_rows(
    head: Sequence[str], rows: Sequence[Sequence[str]], path: Path, *, bold: set[tuple[int, int]] = frozenset(),  # pyright: ignore[reportArgumentType]
    colours: dict[tuple[int, int], Any] | None = None,
) -> None:  # fmt: skip
    """A table as a picture.

    Args:
        head: of the columns.
        rows: of texts, as long as `head`.
        bold, colours: by row and column, from 0.
    """
    figure, axes = grid(1, 1, size=(1.1 * len(head), 0.24 * (len(rows) + 2)))
    _table(axes[0][0], head, rows, bold, colours or {})
    save(figure, path)


def _table(
    ax: Any, head: Sequence[str], rows: Sequence[Sequence[str]], bold: set[tuple[int, int]] = frozenset(),  # pyright: ignore[reportArgumentType]
    colours: dict[tuple[int, int], Any] | None = None,
) -> None:  # fmt: skip
    ax.axis("off")
    drawn = ax.table([list(row) for row in rows], colLabels=list(head), loc="center", cellLoc="center")
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(7.5)
    drawn.auto_set_column_width(list(range(len(head))))
    for (row, column), cell in drawn.get_celld().items():
        cell.set_linewidth(0.3)
        cell.set_height(1 / (len(rows) + 1))
        if row == 0:
            cell.set_facecolor("0.93")
        elif (row - 1, column) in bold:
            cell.get_text().set_fontweight("bold")
        if colours and (row - 1, column) in colours:
            cell.set_facecolor(colours[row - 1, column])


def _grouped(record: Record, *names: str) -> Cells:
    """Accuracies by these parts of a cell's key, in the order of the seeds."""
    found: Cells = {}
    for cell in record["cells"]:
        found.setdefault(tuple(cell["key"][name] for name in names), []).append(cell["result"]["accuracy"])
    return found


def _plus_minus(values: Sequence[float], *, signed: bool = False) -> str:
    mean = average(values)
    return f"{mean:+.2f} ± {deviation(values):.2f}" if signed else f"{mean:.2f} ± {deviation(values):.2f}"


def _shade(gap: float) -> Any:
    """White at 0, full at 5 points."""
    from matplotlib import colormaps

    return colormaps["RdYlGn"](0.5 + 0.08 * max(-5.0, min(5.0, gap)))
