"""Curves of the studies that train classifiers: row norms, scales and losses by step, from the record alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .study_figures import Record, average, deviation, grid, results_of, save


def draw_norms(record: Record, path: Path) -> None:
    """Figure 5, right: mean row norm of BA by step, a panel per optimiser, a colour per arm; thin lines are seeds."""
    optimisers = list(record["settings"]["optimisers"])
    arms = _values(record, "arm")
    figure, axes = grid(1, len(optimisers), size=(4.4, 3.2))
    for ax, optimiser in zip(axes[0], optimisers, strict=True):
        for number, arm in enumerate(arms):
            found = results_of(record, optimiser=optimiser, arm=arm)
            _lines(ax, found[0]["steps"], [r["norms"] for r in found], f"C{number}", arm)
        ax.set_title(f"mean row norm of BA, {optimiser}", fontsize=9)
        ends = sorted(r["norms"][-1] for r in results_of(record, optimiser=optimiser))
        ax.set_ylim(0, 1.2 * max(end for end in ends if end <= 10 * ends[len(ends) // 2]))  # a run that diverged leaves it
        ax.set_xlabel("step", fontsize=8)
    axes[0][0].legend(frameon=False, fontsize=7)
    save(figure, path)


def draw_optimisers(record: Record, path: Path) -> None:
    """A row per optimiser: row norm by step, mean s by step, accuracy at the end."""
    optimisers, arms = _values(record, "optimiser"), _values(record, "arm")
    figure, axes = grid(len(optimisers), 3, size=(3.2, 1.9))
    for row, optimiser in zip(axes, optimisers, strict=True):
        for number, arm in enumerate(arms):
            found = results_of(record, optimiser=optimiser, arm=arm)
            for ax, name in zip(row, ("norms", "scales"), strict=False):
                _lines(ax, found[0]["steps"], [r[name] for r in found], f"C{number}", arm)
            accuracies = [r["accuracy"] for r in found]
            row[2].plot([number] * len(accuracies), accuracies, ".", color=f"C{number}")
            row[2].plot([number - 0.3, number + 0.3], [average(accuracies)] * 2, color=f"C{number}")
        for ax, name in zip(row, ("row norm", "mean s(2)", "accuracy, %"), strict=True):
            ax.set_title(f"{optimiser}: {name}", fontsize=8)
        row[2].set_xticks(range(len(arms)), arms)
    axes[0][0].legend(frameon=False, fontsize=7)
    save(figure, path)


def draw_eta(record: Record, path: Path) -> None:
    """Accuracy and row norm at the end over eta squared, a line per arm with its deviation."""
    etas, arms = record["settings"]["eta2"], _values(record, "arm")
    figure, axes = grid(1, 2, size=(4, 3))
    for ax, name, label in zip(axes[0], ("accuracy", "row_norm"), ("accuracy, %", "mean row norm of BA"), strict=True):
        for number, arm in enumerate(arms):
            groups = [[r[name] for r in results_of(record, arm=arm, eta2=eta2)] for eta2 in etas]
            ax.errorbar(etas, [average(g) for g in groups], [deviation(g) for g in groups], fmt="o-", ms=3, lw=1.2, capsize=2,
                        color=f"C{number}", label=arm)  # fmt: skip
        ax.set_xscale("log", base=2)
        ax.set_xlabel("η²", fontsize=8)
        ax.set_title(label, fontsize=9)
    axes[0][1].set_yscale("log")
    axes[0][0].legend(frameon=False, fontsize=7)
    save(figure, path)


def draw_adaptors(record: Record, path: Path) -> None:
    """Accuracy of every function: dots are seeds, bars their mean; a panel per place of the rule."""
    names = _values(record, "adaptor")
    figure, axes = grid(1, 2, size=(4.2, 3))
    for ax, apply_to in zip(axes[0], ("gradient", "update"), strict=True):
        for number, name in enumerate(names):
            values = [r["accuracy"] for r in results_of(record, adaptor=name, apply_to=apply_to)]
            ax.plot([number] * len(values), values, ".", color=f"C{number}")
            ax.plot([number - 0.3, number + 0.3], [average(values)] * 2, color=f"C{number}", label=name)
        ax.set_xticks([])
        ax.set_title(f"accuracy, %, rule on the {apply_to}", fontsize=9)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=6.5)
    save(figure, path)


def draw_memorisation(record: Record, path: Path) -> None:
    """Training loss, test loss and test accuracy by epoch, a colour per arm, seeds averaged."""
    looks, arms = record["settings"]["looks"], _values(record, "arm")
    figure, axes = grid(1, 3, size=(3.6, 3.2))
    for ax, name in zip(axes[0], ("training_loss", "test_loss", "test_accuracy"), strict=True):
        for number, arm in enumerate(arms):
            curves = [r[name] for r in results_of(record, arm=arm)]
            ax.plot(looks, [average(v) for v in zip(*curves, strict=True)], "o-", ms=2.5, lw=1.2, color=f"C{number}", label=arm)
        ax.set_title(name.replace("_", " "), fontsize=9)
        ax.set_xlabel("epoch", fontsize=8)
    axes[0][0].set_yscale("log")
    axes[0][2].legend(frameon=False, fontsize=6)
    save(figure, path)


def _lines(ax: Any, steps: Sequence[int], curves: Sequence[Sequence[float]], colour: str, label: str) -> None:
    for curve in curves:
        ax.plot(steps, curve, lw=0.4, alpha=0.4, color=colour)
    ax.plot(steps, [average(v) for v in zip(*curves, strict=True)], lw=1.4, color=colour, label=label)


def _values(record: Record, name: str) -> list[Any]:
    """The values of a part of the cells' keys, in order."""
    return list(dict.fromkeys(cell["key"][name] for cell in record["cells"]))
