"""Table 6: perception, LoRA at eta times the rate, ALLoRA+D and ALLoRA."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from ..reporting.study_tables import draw_accuracies
from .cells import Cell, Settings
from .frame import Claim, Finding, Study, judged
from .paper_numbers import audit, gaps_table2
from .perception import DIFFERS, PERCEPTION, gaps, judged_everywhere, judged_mean, mean_gaps, needs, plan, work

METHODS = ("LoRA", "ALLoRA+D", "ALLoRA")


def judge(cells: Sequence[Cell], settings: Settings) -> list[Finding]:
    """Is ALLoRA better than LoRA on average, in every cell, and most so at eta = 1?"""
    over_lora = gaps(cells, settings, "ALLoRA", "LoRA")
    falls = [a - b for a, b in zip(mean_gaps(over_lora, 1), mean_gaps(over_lora, 4), strict=True)]
    return [
        judged_mean("mean", over_lora),
        judged_everywhere("everywhere", over_lora),
        judged("falls", falls, unit=" points", above=0, over="seeds"),
        judged("loss", mean_gaps(gaps(cells, settings, "ALLoRA", "LoRA", of="loss")), below=0, over="seeds"),
    ]


_PAPER = audit(gaps_table2("LoRA"))
_BY_ETA = {eta2: sum(row) / len(row) for eta2, row in gaps_table2("LoRA").items()}

STUDY = Study(
    name="table6",
    title="perception: LoRA, ALLoRA+D, ALLoRA",
    claims=(
        Claim("mean", "Table 6", "ALLoRA is better than LoRA on average", f"{_PAPER['mean']:+.2f} points"),
        Claim("everywhere", "section 4.2", "it is so universally: in every cell",
              f"{_PAPER['wins']} wins, {_PAPER['ties']} tie, {_PAPER['losses']} losses of 27"),
        Claim("falls", "Table 6", "the gain is largest at eta = 1, where the rule only ever lowers the rate (gain at eta^2 = 1 "
              "minus at 4)", f"{_BY_ETA[1] - _BY_ETA[4]:+.2f} points"),
        Claim("loss", "beside Table 6", "ALLoRA has the lower cross-entropy on the test rows (ALLoRA - LoRA, mean)",
              "not measured", by_paper=False),
    ),
    needs=needs,
    libraries=("transformers", "peft"),
    settings=PERCEPTION,
    differs=DIFFERS,
    plan=partial(plan, methods=METHODS),
    work=work,
    judge=judge,
    draw=draw_accuracies,
)  # fmt: skip
