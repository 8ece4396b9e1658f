"""The control that the paper lacks: LoRA without dropout, beside Table 6. Is it the rule that helps, or the missing dropout?"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from statistics import fmean

from ..reporting.study_tables import draw_gaps
from .cells import Cell, Settings, results
from .frame import Claim, Finding, Study, judged
from .perception import DIFFERS, ETA2, PERCEPTION, gaps, judged_everywhere, judged_mean, mean_gaps, needs, plan, work

CONTROL = "LoRA without dropout"
PAIRS = ((CONTROL, "LoRA"), ("ALLoRA", CONTROL), ("ALLoRA", "LoRA"))


def judge(cells: Sequence[Cell], settings: Settings) -> list[Finding]:
    """What leaving dropout out gives, and what the rule gives beyond it."""
    beyond = gaps(cells, settings, "ALLoRA", CONTROL)
    return [
        judged_mean("without", gaps(cells, settings, CONTROL, "LoRA")),
        judged_mean("rule", beyond),
        judged_everywhere("rule-everywhere", beyond),
        judged("loss", mean_gaps(gaps(cells, settings, "ALLoRA", CONTROL, of="loss")), below=0, over="seeds"),
        judged("cancels", _against_plain(cells, settings), unit=" points", above=-1, below=1, over="seeds"),
    ]


def _against_plain(cells: Sequence[Cell], settings: Settings) -> list[float]:
    """ALLoRA, the mean over eta, minus LoRA without dropout at the rate l_b itself; mean over the columns, per seed."""
    found = []
    for column in settings["columns"]:
        by_eta = [results(cells, "accuracy", column=column, method="ALLoRA", eta2=eta2) for eta2 in ETA2]
        plain = results(cells, "accuracy", column=column, method=CONTROL, eta2=1)
        found.append([fmean(scores) - p for *scores, p in zip(*by_eta, plain, strict=True)])
    return [fmean(gaps) for gaps in zip(*found, strict=True)]


_WHERE = "asked by the reviewers"

STUDY = Study(
    name="norm-free",
    title="LoRA without dropout as the control",
    claims=(
        Claim("without", _WHERE, "LoRA without dropout is better than LoRA with .05", "not measured", by_paper=False),
        Claim(
            "rule", _WHERE, "ALLoRA is better than LoRA without dropout (at eta times the rate)", "not measured", by_paper=False
        ),
        Claim("rule-everywhere", _WHERE, "it is so in every cell", "not measured", by_paper=False),
        Claim("loss", _WHERE, "ALLoRA has the lower cross-entropy on the test rows (mean)", "not measured", by_paper=False),
        Claim(
            "cancels",
            "method.md, section 4",
            "under Adafactor the rule cancels: ALLoRA, whatever eta, is LoRA without dropout at "
            "the rate l_b, within a point (added after a first look)",
            "derived",
            by_paper=False,
        ),
    ),
    needs=needs,
    libraries=("transformers", "peft"),
    settings=PERCEPTION,
    differs=DIFFERS,
    plan=partial(plan, methods=(CONTROL,)),
    work=work,
    judge=judge,
    draw=partial(draw_gaps, pairs=PAIRS),
    sources=("table6",),
)
