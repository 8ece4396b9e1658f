"""Table 6: text classification with LoRA at eta times the learning rate, ALLoRA+D and ALLoRA."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from statistics import fmean

from ..cells import Cell, Settings
from ..classify import LIBRARIES, data_sets
from ..perception import (
    DIFFERS,
    PERCEPTION,
    better_everywhere,
    better_on_average,
    draw_accuracies,
    lower_loss,
    mean_gaps,
    plan,
    work,
)
from ..printed import audit, gaps_table2
from ..study import Claim, Study, by_mean, minus

PRINTED = audit(gaps_table2("LoRA"))
PRINTED_BY_ETA = {eta2: fmean(row) for eta2, row in gaps_table2("LoRA").items()}


def fall(cells: Sequence[Cell], settings: Settings) -> list[float]:
    """The mean gain over LoRA at eta^2 = 1 minus that at 4, per seed."""
    return minus(*(mean_gaps("ALLoRA", "LoRA", eta2=eta2)(cells, settings) for eta2 in (1, 4)))


STUDY = Study(
    name="table6",
    claims=[
        Claim("mean", "Table 6", "ALLoRA is more accurate than LoRA in the mean over the table.",
              f"{PRINTED['mean']:+.2f} points", better_on_average("ALLoRA", "LoRA")),
        Claim("everywhere", "section 4.2", "ALLoRA is universally better: more accurate than LoRA in every cell of the table.",
              f"{PRINTED['wins']} wins, {PRINTED['ties']} tie, {PRINTED['losses']} losses of 27",
              better_everywhere("ALLoRA", "LoRA")),
        Claim("falls", "Table 6", "The gain is largest at eta = 1, where the rule only ever lowers the learning rate (gain at "
              "eta^2 = 1 minus gain at 4).", f"{PRINTED_BY_ETA[1] - PRINTED_BY_ETA[4]:+.2f} points",
              by_mean(fall, unit=" points", above=0)),
        Claim("loss", "beside Table 6", "ALLoRA has a lower cross-entropy on test rows (ALLoRA - LoRA, mean over the table).",
              "not measured", lower_loss("ALLoRA", "LoRA"), by_paper=False),
    ],
    settings=PERCEPTION,
    differs=DIFFERS,
    plan=partial(plan, methods=("LoRA", "ALLoRA+D", "ALLoRA")),
    work=work,
    draw=draw_accuracies,
    needs=data_sets,
    libraries=LIBRARIES,
)  # fmt: skip
