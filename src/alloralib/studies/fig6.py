"""Figure 6: the scale 1/sqrt(|x| + 1/eta^2) as it is implemented, for eta^2 = 1, 2, 4."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ..ops.scale import scale
from ..reporting.study_figures import draw_fig6
from .frame import Cell, Claim, Finding, Key, Result, Settings, Study, judged_range
from .images import StudyData


def plan(settings: Settings) -> list[Key]:
    """A cell per eta squared."""
    return [{"eta2": eta2} for eta2 in settings["eta2"]]


def work(key: Key, settings: Settings, data: StudyData) -> Result:
    """The curve, in float64."""
    x = torch.linspace(-settings["largest"], settings["largest"], settings["points"], dtype=torch.float64)
    return {"x": x.tolist(), "s": scale(x.abs(), math.sqrt(key["eta2"])).tolist()}


def judge(cells: Sequence[Cell], settings: Settings) -> list[Finding]:
    """Against the formula, written out once more."""
    worst, at_zero = 0.0, 0.0
    for cell in cells:
        for x, s in zip(cell.result["x"], cell.result["s"], strict=True):
            wanted = 1 / math.sqrt(abs(x) + 1 / cell.key["eta2"])
            worst = max(worst, abs(s / wanted - 1))
            if x == 0:
                at_zero = max(at_zero, abs(s - math.sqrt(cell.key["eta2"])))
    ends = [cell.result["s"][-1] for cell in cells]
    return [
        judged_range("formula", [worst], below=1e-5, over=f"largest of {len(cells)} curves, six digits kept"),
        judged_range("zero", [at_zero], below=1e-5, over="largest of the curves, six digits kept"),
        judged_range(
            "far", [100 * (max(ends) / min(ends) - 1)], unit=" %", below=10, over=f"exact, at |x| = {settings['largest']}"
        ),
    ]


STUDY = Study(
    name="fig6",
    title="the scale 1/sqrt(|x| + 1/eta^2)",
    claims=(
        Claim("formula", "Figure 6", "the scale is 1/sqrt(|x| + 1/eta^2) (largest relative difference)", "0"),
        Claim("zero", "Figure 6", "at zero it is eta (largest difference)", "0"),
        Claim("far", "Figure 6", "far from zero it no longer depends on eta (largest over smallest curve)", "curves meet"),
    ),
    needs=lambda settings: (),
    settings={scale: {"eta2": [1, 2, 4], "largest": 10.0, "points": 201} for scale in ("laptop", "paper")},
    differs=dict.fromkeys(("laptop", "paper"), "Nothing: it is a function, taken from the code that trains."),
    plan=plan,
    work=work,
    judge=judge,
    draw=draw_fig6,
)
