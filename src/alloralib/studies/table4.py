"""Table 4: the gaps from ALLoRA to ALLoRA-OD, ASF-LoRA and LoRA x eta, from the runs of Tables 6 and 7."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from ..reporting.study_tables import draw_gaps
from .cells import Cell, Settings
from .frame import Claim, Finding, Study
from .paper_numbers import audit, gaps_table4
from .perception import DIFFERS, PERCEPTION, gaps, judged_mean, needs, work
from .table7 import OTHERS


def judge(cells: Sequence[Cell], settings: Settings) -> list[Finding]:
    """The mean gap to each."""
    return [judged_mean(name, gaps(cells, settings, "ALLoRA", name)) for name in OTHERS]


STUDY = Study(
    name="table4",
    title="gaps to ALLoRA-OD, ASF-LoRA and LoRA x eta",
    claims=tuple(
        Claim(name, "Table 4", f"ALLoRA is better than {name} (mean over the table)",
              f"{audit(gaps_table4(printed))['mean']:+.2f} points")
        for name, printed in OTHERS.items()
    ),
    needs=needs,
    libraries=("transformers", "peft"),
    settings=PERCEPTION,
    differs=DIFFERS,
    plan=lambda settings: [],
    work=work,
    judge=judge,
    draw=partial(draw_gaps, pairs=[("ALLoRA", name) for name in OTHERS]),
    sources=("table6", "table7"),
)  # fmt: skip
