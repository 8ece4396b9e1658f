"""Table 4: the differences from ALLoRA to ALLoRA-OD, ASF-LoRA and LoRA x eta, from the runs of Tables 6 and 7."""

from __future__ import annotations

from functools import partial

from ..classify import LIBRARIES, data_sets
from ..perception import DIFFERS, PERCEPTION, better_on_average, draw_gaps, work
from ..printed import audit, gaps_table4
from ..study import Claim, Study
from .table7 import OTHERS

STUDY = Study(
    name="table4",
    claims=[
        Claim(name, "Table 4", f"ALLoRA is more accurate than {name} (mean over the table).",
              f"{audit(gaps_table4(printed))['mean']:+.2f} points", better_on_average("ALLoRA", name))
        for name, printed in OTHERS.items()
    ],
    settings=PERCEPTION,
    differs=DIFFERS,
    plan=lambda settings: [],
    work=work,
    draw=partial(draw_gaps, pairs=[("ALLoRA", name) for name in OTHERS]),
    needs=data_sets,
    libraries=LIBRARIES,
    sources=("table6", "table7"),
)  # fmt: skip
