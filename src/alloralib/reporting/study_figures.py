"""Pictures of studies, drawn like the paper's, from the record alone. No torch."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def draw_fig1(record: Record, path: Path) -> None:
    """Absolute and relative error by number of realisations, log-log: rows are rates, columns data sets; theory dashed."""
    settings = record["settings"]
    counts, rates, sets = settings["realisations"], settings["rates"], settings["datasets"]
    figure, axes = new_axes(len(rates), 2 * len(sets), size=(1.9, 1.5))
    for i, rate in enumerate(rates):
        for j, (kind, dataset) in enumerate((k, d) for k in ("absolute", "relative") for d in sets):
            ax = axes[i][j]
            for colour, base in zip(("C0", "C1"), settings["bases"], strict=False):
                result = _one(record, dataset=dataset, base=base, rate=rate)
                over = 1 if kind == "absolute" else result["expected"]
                ax.loglog(counts, [v / over for v in result["path"]], lw=0.6, alpha=0.5, color=colour)
                ax.loglog(counts, [v / over for v in result["error"]], "o", ms=2.5, color=colour, label=f"W {base}")
                ax.loglog(counts, [v / over for v in result["predicted"]], "--", lw=0.9, color=colour)
            if i == 0:
                ax.set_title(f"{dataset}, {kind}", fontsize=8)
            if j == 0:
                ax.set_ylabel(f"rate {rate:g}", fontsize=8)
            if i == len(rates) - 1:
                ax.set_xlabel("realisations", fontsize=8)
    axes[0][0].legend(frameon=False, fontsize=6)
    figure.suptitle("|empirical - expected| loss: dots mean, thin one run, dashed sqrt(2/pi) Std/sqrt(N)", fontsize=9)
    save_png(figure, path)


def draw_fig2(record: Record, path: Path) -> None:
    """Deviations of the gradient's entries by epoch: mean, and shaded quantiles; rows are rates, columns data sets."""
    settings = record["settings"]
    figure, axes = new_axes(len(settings["rates"]), len(settings["datasets"]), size=(4, 2.6))
    epochs = list(range(1, settings["epochs"] + 1))
    for i, rate in enumerate(settings["rates"]):
        for j, dataset in enumerate(settings["datasets"]):
            ax = axes[i][j]
            results = _all(record, dataset=dataset, rate=rate)
            for name, colour, label in (("masks", "C0", "masks"), ("batches", "C1", "mini-batches (control)")):
                quantiles = [_mean(r[name][epoch - 1]["quantiles"] for r in results) for epoch in epochs]
                for low, high, alpha in ((1, 5, 0.25), (5, 7, 0.1)):
                    ax.fill_between(
                        epochs, [q[low] for q in quantiles], [q[high] for q in quantiles], color=colour, alpha=alpha, lw=0
                    )
                means = [_average(r[name][epoch - 1]["mean"] for r in results) for epoch in epochs]
                ax.semilogy(epochs, means, "o-", ms=3, color=colour, label=label)
            ax.set_title(f"{dataset}, rate {rate:g}", fontsize=9)
            ax.set_xlabel("epoch", fontsize=8)
    axes[0][0].legend(frameon=False, fontsize=7)
    figure.suptitle("deviation of the gradient of layer 2: mean, 5 to 95 % and to 99.9 % of the entries", fontsize=9)
    save_png(figure, path)


def draw_fig4(record: Record, path: Path) -> None:
    """Left: the gap by step, colour = rate, thin lines are seeds. Right: exact, averaged and sampled where all exist."""
    settings = record["settings"]
    figure, axes = new_axes(1, 2, size=(4.2, 3))
    left, right = axes[0]
    for rate, colour in zip(settings["rates"], _colours(settings["rates"]), strict=True):
        sampled, averaged = (_all(record, case="all layers", rate=rate, loss=m) for m in ("sampled", "averaged"))
        pairs = zip(sampled, averaged, strict=True)
        gaps = [[x - y for x, y in zip(a["test_loss"], b["test_loss"], strict=True)] for a, b in pairs]
        for gap in gaps:
            left.plot(sampled[0]["steps"], gap, lw=0.5, alpha=0.4, color=colour)
        left.plot(sampled[0]["steps"], _mean(gaps), lw=1.8, color=colour, label=f"rate {rate:g}")
    left.axhline(0, color="0.7", lw=0.8)
    left.set_title("test loss, sampled - expected", fontsize=9)
    for name, style in (("exact", "C0-"), ("averaged", "C1--"), ("sampled", "C2:")):
        results = _all(record, case="last layer", loss=name)
        right.plot(results[0]["steps"], _mean(r["test_loss"] for r in results), style, label=name)
    right.set_title("last layer, squared loss: test loss", fontsize=9)
    for ax in (left, right):
        ax.set_xlabel("step", fontsize=8)
        ax.legend(frameon=False, fontsize=7)
    save_png(figure, path)


def draw_fig3(record: Record, path: Path) -> None:
    """Norms of A and B and the loss by step, colour = rate, seeds averaged; a row per optimiser."""
    settings = record["settings"]
    names = {"A": "norm of A", "B": "norm of B", "loss": "training loss"}
    figure, axes = new_axes(len(settings["optimisers"]), 3, size=(3.2, 2.5))
    for i, optimiser in enumerate(settings["optimisers"]):
        for rate, colour in zip(settings["rates"], _colours(settings["rates"]), strict=True):
            results = _all(record, optimiser=optimiser, rate=rate)
            for ax, name in zip(axes[i], names, strict=True):
                ax.plot(results[0]["steps"], _mean(r[name] for r in results), lw=1, color=colour)
        for ax, (name, label) in zip(axes[i], names.items(), strict=True):
            ax.set_title(f"{label} ({optimiser})", fontsize=9)
            ax.set_xlabel("step", fontsize=8)
            if name == "loss":
                ax.set_yscale("log")
    _rate_bar(figure, axes, settings["rates"])
    save_png(figure, path)


def draw_table5(record: Record, path: Path) -> None:
    """Accuracy by epoch, colour = rate: the mean of the runs, and the runs themselves thin; below it the table."""
    settings = record["settings"]
    rates, early = settings["rates"], settings["early"]
    figure, axes = new_axes(2, 1, size=(5.6, 2.6), height_ratios=[2.2, 1])
    ax, table = axes[0][0], axes[1][0]
    epochs = list(range(1, settings["epochs"] + 1))
    rows: list[list[str]] = [[], [], [], []]
    for rate, colour in zip(rates, _colours(rates), strict=True):
        curves = [r["accuracy"] for r in _all(record, rate=rate)]
        mean = _mean(curves)
        for curve in curves:
            ax.plot(epochs, curve, lw=0.5, alpha=0.4, color=colour)
        ax.plot(epochs, mean, "o-", ms=3, lw=1.5, color=colour, label=f"{rate:g}")
        for row, value in zip(rows, (mean[early - 1], mean[-1], max(mean)), strict=False):
            row.append(f"{value:.2f}")
        rows[3].append(str(mean.index(max(mean)) + 1))
    ax.set_xlabel("epoch", fontsize=8)
    ax.set_ylabel("accuracy, %", fontsize=8)
    ax.legend(frameon=False, fontsize=7, title="dropout", title_fontsize=7)
    table.axis("off")
    names = [f"epoch {early}", f"epoch {epochs[-1]}", "best", "epoch of best"]
    drawn = table.table(rows, rowLabels=names, colLabels=[f"{rate:g}" for rate in rates], loc="center")
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(8)
    save_png(figure, path)


def draw_proposition1(record: Record, path: Path) -> None:
    """Left: growth of constructions by depth and the bound. Middle: of trained adapters. Right: their interaction."""
    settings = record["settings"]
    figure, axes = new_axes(1, 3, size=(3.6, 3.0))
    left, middle, right = axes[0]
    depths, trained = settings["depths"], settings["trained_depths"]
    for number, kind in enumerate(("aligned", "orthogonal", "skip", "pre-norm")):
        results = [_all(record, kind=kind, depth=depth) for depth in depths]
        left.plot(
            depths, [_average(r["growth"] for r in group) for group in results], "o-", ms=3, color=f"C{number}", label=kind
        )
    left.plot(depths, [_all(record, kind="aligned", depth=d)[0]["bound"] for d in depths], "k--", lw=1, label="bound")
    left.set_title("constructions: log growth", fontsize=9)
    for number, kind in enumerate(("plain", "normed")):
        results = [_all(record, kind=f"trained {kind}", depth=depth) for depth in trained]
        for name, style in (("growth", "o-"), ("bound", "--")):
            values = [_average(r[name] for r in group) for group in results]
            middle.plot(trained, values, style, ms=3, color=f"C{number}", label=f"{kind}, {name}")
        for group, depth in zip(results, trained, strict=True):
            right.plot([depth] * len(group), [100 * r["interaction"] for r in group], ".", ms=3, color=f"C{number}", alpha=0.5)
        values = [100 * _average(r["interaction"] for r in group) for group in results]
        right.plot(trained, values, "-", color=f"C{number}", label=kind)
    middle.set_title("trained: log growth", fontsize=9)
    right.set_title("interaction of layers, % of their sum", fontsize=9)
    for ax in (left, middle, right):
        ax.set_xscale("log", base=2)
        ax.set_xlabel("layers", fontsize=8)
        ax.legend(frameon=False, fontsize=7)
    save_png(figure, path)


def draw_fig6(record: Record, path: Path) -> None:
    """The scale over x, a curve per eta squared."""
    figure, axes = new_axes(1, 1, size=(5, 3.2))
    ax = axes[0][0]
    for cell in record["cells"]:
        ax.plot(cell["result"]["x"], cell["result"]["s"], label=f"η² = {cell['key']['eta2']}")
    ax.set_xlabel("x")
    ax.set_ylabel("1/√(|x| + 1/η²)")
    ax.legend(frameon=False)
    save_png(figure, path)


def new_axes(rows: int, columns: int, *, size: tuple[float, float], **settings: Any) -> tuple[Any, Any]:
    """A figure and its axes, `rows` x `columns` of them, each `size` inches wide and high."""
    from matplotlib.figure import Figure  # no pyplot: no window, no global state

    figure = Figure(figsize=(columns * size[0], rows * size[1]), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **settings)
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=7)
    return figure, axes


def save_png(figure: Any, path: Path) -> None:
    """A PNG of at most 128 colours, a third of the size of the full one."""
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    with Image.open(buffer) as image:
        image.convert("RGB").quantize(128).save(path, format="PNG", optimize=True)


def _all(record: Record, **wanted: Any) -> list[dict[str, Any]]:
    cells = record["cells"]
    return [c["result"] for c in cells if all(c["key"].get(name) == value for name, value in wanted.items())]


def _one(record: Record, **wanted: Any) -> dict[str, Any]:
    (found,) = _all(record, **wanted)
    return found


def _mean(curves: Iterable[list[float]]) -> list[float]:
    return [sum(values) / len(values) for values in zip(*curves, strict=True)]


def _average(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


def _colours(rates: list[float]) -> list[Any]:
    from matplotlib import colormaps

    top = max(rates) or 1
    return [colormaps["viridis"](0.95 * rate / top) for rate in rates]


def _rate_bar(figure: Any, axes: Any, rates: list[float]) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    bar = figure.colorbar(ScalarMappable(Normalize(0, max(rates) / 0.95), "viridis"), ax=axes, label="dropout rate", pad=0.01)
    bar.ax.tick_params(labelsize=7)
