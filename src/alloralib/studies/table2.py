"""Table 2: the gaps ALLoRA - LoRA and ALLoRA - ALLoRA+D, from Table 6's runs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from ..reporting.study_tables import draw_gaps
from .cells import Cell, Settings
from .frame import Claim, Finding, Study
from .paper_numbers import audit, gaps_table2
from .perception import DIFFERS, ETA2, PERCEPTION, gaps, judged_mean, needs, work

PAIRS = (("ALLoRA", "LoRA"), ("ALLoRA", "ALLoRA+D"))


def judge(cells: Sequence[Cell], settings: Settings) -> list[Finding]:
    """The mean gap over LoRA by eta squared, and the one over ALLoRA+D over all."""
    over_lora = gaps(cells, settings, "ALLoRA", "LoRA")
    return [
        *(judged_mean(f"left-{eta2}", over_lora, eta2) for eta2 in ETA2),
        judged_mean("right", gaps(cells, settings, "ALLoRA", "ALLoRA+D")),
    ]


_LEFT, _RIGHT = gaps_table2("LoRA"), audit(gaps_table2("ALLoRA+D"))

STUDY = Study(
    name="table2",
    title="gaps ALLoRA - LoRA and ALLoRA - ALLoRA+D",
    claims=(
        *(
            Claim(f"left-{eta2}", "Table 2, left", f"ALLoRA is better than LoRA at eta^2 = {eta2} (mean over the columns)",
                  f"{sum(_LEFT[eta2]) / len(_LEFT[eta2]):+.2f} points")
            for eta2 in ETA2
        ),
        Claim("right", "Table 2, right", "dropout is not needed: ALLoRA is better than ALLoRA+D (mean over the table)",
              f"{_RIGHT['mean']:+.2f} points, {_RIGHT['wins']} wins, {_RIGHT['losses']} losses"),
    ),
    needs=needs,
    libraries=("transformers", "peft"),
    settings=PERCEPTION,
    differs=DIFFERS,
    plan=lambda settings: [],
    work=work,
    judge=judge,
    draw=partial(draw_gaps, pairs=PAIRS),
    sources=("table6",),
)  # fmt: skip
