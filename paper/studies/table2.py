"""Table 2: the differences ALLoRA - LoRA and ALLoRA - ALLoRA+D, from the runs of Table 6."""

from __future__ import annotations

from functools import partial

from ..classify import LIBRARIES, data_sets
from ..perception import DIFFERS, ETA2, PERCEPTION, better_on_average, draw_gaps, work
from ..printed import audit, gaps_table2
from ..study import Claim, Study

OVER_LORA, OVER_DROPOUT = gaps_table2("LoRA"), audit(gaps_table2("ALLoRA+D"))

STUDY = Study(
    name="table2",
    claims=[
        *(
            Claim(f"left-{eta2}", "Table 2, left", f"ALLoRA is more accurate than LoRA at eta^2 = {eta2} (mean over "
                  "the columns).", f"{sum(OVER_LORA[eta2]) / len(OVER_LORA[eta2]):+.2f} points",
                  better_on_average("ALLoRA", "LoRA", eta2=eta2))
            for eta2 in ETA2
        ),
        Claim("right", "Table 2, right", "Dropout is not needed: ALLoRA is more accurate than ALLoRA+D (mean over the table).",
              f"{OVER_DROPOUT['mean']:+.2f} points, {OVER_DROPOUT['wins']} wins, {OVER_DROPOUT['losses']} losses",
              better_on_average("ALLoRA", "ALLoRA+D")),
    ],
    settings=PERCEPTION,
    differs=DIFFERS,
    plan=lambda settings: [],
    work=work,
    draw=partial(draw_gaps, pairs=[("ALLoRA", "LoRA"), ("ALLoRA", "ALLoRA+D")]),
    needs=data_sets,
    libraries=LIBRARIES,
    sources=("table6",),
)  # fmt: skip
