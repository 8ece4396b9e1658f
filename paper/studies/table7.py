"""Table 7: text classification with the other methods of the family, next to the runs of Table 6."""

from __future__ import annotations

from functools import partial

from ..classify import LIBRARIES, data_sets
from ..perception import DIFFERS, PERCEPTION, better_everywhere, draw_accuracies, plan, work
from ..printed import audit, gaps_table4
from ..study import Claim, Study

OTHERS = {"ALLoRA-OD": "ALLoRA-OD", "ASF-LoRA": "ASF-LoRA", "LoRA x eta": "LoRAxeta"}
"""Our name -> the name in `printed`."""


def claim(name: str) -> Claim:
    """ALLoRA against another method, cell by cell."""
    printed = audit(gaps_table4(OTHERS[name]))
    return Claim(
        name, "Table 7 beside 6", f"ALLoRA is more accurate than {name} in every cell of the table.",
        f"{printed['wins']} wins, {printed['ties']} ties, {printed['losses']} losses of 18", better_everywhere("ALLoRA", name),
    )  # fmt: skip


STUDY = Study(
    name="table7",
    claims=[claim(name) for name in OTHERS],
    settings=PERCEPTION,
    differs=DIFFERS,
    plan=partial(plan, methods=tuple(OTHERS)),
    work=work,
    draw=draw_accuracies,
    needs=data_sets,
    libraries=LIBRARIES,
    sources=("table6",),
)
