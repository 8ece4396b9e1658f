"""The studies by name, in the order of the paper. A study's module is imported only when the study is asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from alloralib.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from .study import Study

TITLES: dict[str, str] = {
    "fig1": "error of the mean dropout loss, by number of dropout masks",
    "fig2": "spread of the gradient over dropout masks, by epoch",
    "fig3": "norms of A and B and the training loss, by dropout rate",
    "fig4": "test loss after training on sampled and on expected dropout loss",
    "table5": "LoRA's accuracy by epoch and dropout rate (and Figure 5, left)",
    "fig5": "mean row norm of BA during training, LoRA and ALLoRA (Figure 5, right)",
    "proposition1": "how much the effects of many adapted layers multiply",
    "fig6": "the scale 1/sqrt(|x| + 1/eta^2)",
    "table1": "accuracy by rank: LoRA, DoRA, ALLoRA",
    "table2": "differences ALLoRA - LoRA and ALLoRA - ALLoRA+D",
    "table3": "commonsense reasoning",
    "table4": "differences to ALLoRA-OD, ASF-LoRA and LoRA x eta",
    "table6": "text classification: LoRA, ALLoRA+D, ALLoRA",
    "table7": "text classification: ALLoRA-OD, ASF-LoRA, LoRA x eta",
    "fair": "Table 6 again, with the learning rate tuned for each method",
    "norm-free": "LoRA without dropout as a control",
    "optimisers": "the rule under SGD, momentum, AdamW and Adafactor, on the gradient and on the update",
    "eta": "sensitivity to eta",
    "adaptors": "other adaptor functions",
    "memorisation": "little data and long training: which regularizer helps",
}
"""Name -> title: first what the paper shows, then questions it leaves open. `studies/NAME.py` (with _ for -) holds STUDY."""

QUICK = ("fig1", "fig3", "fig6", "proposition1")
"""The studies that take less than four minutes together on two cores."""


def load(name: str) -> Study:
    """Import a study.

    Raises:
        ConfigError: no study has that name.
    """
    if name not in TITLES:
        raise ConfigError(f"there is no study {name!r}", remedy=did_you_mean(name, [*TITLES, "quick", "all"]))
    return importlib.import_module(f".studies.{name.replace('-', '_')}", __package__).STUDY
