"""Table 7: perception, the other members of the family. Table 6's runs stand beside them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from ..reporting.study_tables import draw_accuracies
from .cells import Cell, Settings
from .frame import Claim, Finding, Study
from .paper_numbers import audit, gaps_table4
from .perception import DIFFERS, PERCEPTION, gaps, judged_everywhere, needs, plan, work

OTHERS = {"ALLoRA-OD": "ALLoRA-OD", "ASF-LoRA": "ASF-LoRA", "LoRA x eta": "LoRAxeta"}
"""Ours -> the name in `paper_numbers`."""


def judge(cells: Sequence[Cell], settings: Settings) -> list[Finding]:
    """ALLoRA against each, cell by cell."""
    return [judged_everywhere(name, gaps(cells, settings, "ALLoRA", name)) for name in OTHERS]


def _printed(name: str) -> str:
    found = audit(gaps_table4(OTHERS[name]))
    return f"{found['wins']} wins, {found['ties']} ties, {found['losses']} losses of 18"


STUDY = Study(
    name="table7",
    title="perception: ALLoRA-OD, ASF-LoRA, LoRA x eta",
    claims=tuple(
        Claim(name, "Table 7 beside 6", f"ALLoRA is better than {name} in every cell", _printed(name)) for name in OTHERS
    ),
    needs=needs,
    libraries=("transformers", "peft"),
    settings=PERCEPTION,
    differs=DIFFERS,
    plan=partial(plan, methods=tuple(OTHERS)),
    work=work,
    judge=judge,
    draw=draw_accuracies,
    sources=("table6",),
)
