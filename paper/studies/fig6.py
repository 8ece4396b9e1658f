"""Figure 6: the scale 1/sqrt(|x| + 1/eta^2) as it is implemented, for eta^2 = 1, 2, 4."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from alloralib.ops.scale import scale

from ..cells import Cell, Key, Result, Settings
from ..data import StudyData
from ..drawing import axes_grid, save
from ..study import Claim, Finding, Study, both_scales, keys, range_finding


def work(key: Key, settings: Settings, data: StudyData) -> Result:
    """The curve for one eta, in float64."""
    x = torch.linspace(-settings["largest"], settings["largest"], settings["points"], dtype=torch.float64)
    return {"x": x.tolist(), "s": scale(x.abs(), math.sqrt(key["eta2"])).tolist()}


def formula(cells: Sequence[Cell], settings: Settings) -> Finding:
    """The largest relative difference to the formula, written out once more."""
    differences = [
        abs(s / (1 / math.sqrt(abs(x) + 1 / cell.key["eta2"])) - 1)
        for cell in cells
        for x, s in zip(cell.result["x"], cell.result["s"], strict=True)
    ]
    return range_finding([max(differences)], below=1e-5, over=f"largest of {len(cells)} curves, six digits kept")


def zero(cells: Sequence[Cell], settings: Settings) -> Finding:
    """The largest difference to eta at x = 0.

    The curves of the committed record have no point at exactly 0 (rounding puts it at -6e-16), so nothing is compared there.
    """
    differences = [
        abs(s - math.sqrt(cell.key["eta2"]))
        for cell in cells
        for x, s in zip(cell.result["x"], cell.result["s"], strict=True)
        if x == 0
    ]
    return range_finding([max(differences, default=0.0)], below=1e-5, over="largest of the curves, six digits kept")


def far(cells: Sequence[Cell], settings: Settings) -> Finding:
    """How far the curves are apart at the largest |x|, in percent."""
    ends = [cell.result["s"][-1] for cell in cells]
    over = f"exact, at |x| = {settings['largest']}"
    return range_finding([100 * (max(ends) / min(ends) - 1)], unit=" %", below=10, over=over)


def draw(cells: Sequence[Cell], settings: Settings, path: Path) -> None:
    """The scale over x, a curve per eta squared."""
    figure, axes = axes_grid(1, 1, size=(5, 3.2))
    ax = axes[0][0]
    for cell in cells:
        ax.plot(cell.result["x"], cell.result["s"], label=f"η² = {cell.key['eta2']}")
    ax.set_xlabel("x")
    ax.set_ylabel("1/√(|x| + 1/η²)")
    ax.legend(frameon=False)
    save(figure, path)


STUDY = Study(
    name="fig6",
    claims=[
        Claim("formula", "Figure 6", "The scale is 1/sqrt(|x| + 1/eta^2) (largest relative difference).", "0", formula),
        Claim("zero", "Figure 6", "At x = 0 the scale is eta (largest difference).", "0", zero),
        Claim("far", "Figure 6", "Far from zero the scale no longer depends on eta (largest over smallest curve).",
              "curves meet", far),
    ],
    settings={name: {"eta2": [1, 2, 4], "largest": 10.0, "points": 201} for name in ("laptop", "paper")},
    differs=both_scales("Nothing: the function is taken from the code that trains."),
    plan=lambda settings: keys(eta2=settings["eta2"]),
    work=work,
    draw=draw,
)  # fmt: skip
