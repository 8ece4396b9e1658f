"""The control that the paper lacks: LoRA without dropout, beside Table 6. Does the rule help, or the missing dropout?"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from statistics import fmean

from ..cells import Cell, Settings, values
from ..classify import LIBRARIES, data_sets
from ..perception import (
    DIFFERS,
    ETA2,
    PERCEPTION,
    better_everywhere,
    better_on_average,
    draw_gaps,
    lower_loss,
    plan,
    work,
)
from ..study import Claim, Study, by_mean

CONTROL = "LoRA without dropout"
WHERE = "asked by the reviewers"


def against_plain(cells: Sequence[Cell], settings: Settings) -> list[float]:
    """ALLoRA, averaged over eta, minus LoRA without dropout at the rate l_b; the mean over the columns, per seed."""
    found = []
    for column in settings["columns"]:
        by_eta = [values(cells, "accuracy", column=column, method="ALLoRA", eta2=eta2) for eta2 in ETA2]
        plain = values(cells, "accuracy", column=column, method=CONTROL, eta2=1)
        found.append([fmean(scores) - p for *scores, p in zip(*by_eta, plain, strict=True)])
    return [fmean(gaps) for gaps in zip(*found, strict=True)]


STUDY = Study(
    name="norm-free",
    claims=[
        Claim("without", WHERE, "LoRA without dropout is more accurate than LoRA with dropout .05 (mean over the table).",
              "not measured", better_on_average(CONTROL, "LoRA"), by_paper=False),
        Claim("rule", WHERE, "ALLoRA is more accurate than LoRA without dropout at eta times the rate (mean over the table).",
              "not measured", better_on_average("ALLoRA", CONTROL), by_paper=False),
        Claim("rule-everywhere", WHERE, "ALLoRA is more accurate than LoRA without dropout in every cell of the table.",
              "not measured", better_everywhere("ALLoRA", CONTROL), by_paper=False),
        Claim("loss", WHERE, "ALLoRA has a lower cross-entropy on test rows than LoRA without dropout (mean over the table).",
              "not measured", lower_loss("ALLoRA", CONTROL), by_paper=False),
        Claim("cancels", "scale invariance of Adafactor", "Under Adafactor the rule has no effect: with any eta, ALLoRA is "
              "within a point of LoRA without dropout at the rate l_b (added after a first look).", "derived",
              by_mean(against_plain, unit=" points", above=-1, below=1), by_paper=False),
    ],
    settings=PERCEPTION,
    differs=DIFFERS,
    plan=partial(plan, methods=(CONTROL,)),
    work=work,
    draw=partial(draw_gaps, pairs=[(CONTROL, "LoRA"), ("ALLoRA", CONTROL), ("ALLoRA", "LoRA")]),
    needs=data_sets,
    libraries=LIBRARIES,
    sources=("table6",),
)  # fmt: skip
