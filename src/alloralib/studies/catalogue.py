"""The studies by name, in the order of the paper. Imports nothing heavy; a study's module is loaded when it is asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from ..errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from .frame import Study

TITLES: dict[str, str] = {
    "fig1": "|empirical - expected| dropout loss against the number of realisations",
    "fig2": "spread of the gradient over dropout masks, by epoch",
    "fig3": "norms of A and B, and the loss, by dropout rate",
    "fig4": "test loss of training on the expected against the sampled dropout loss",
    "table5": "LoRA's dropout rate by epoch (and Figure 5, left)",
    "fig5": "mean row norm of BA by step, LoRA and ALLoRA (Figure 5, right)",
    "proposition1": "how far the factors of many adapted layers multiply",
    "fig6": "the scale 1/sqrt(|x| + 1/eta^2)",
    "table1": "accuracy by rank: LoRA, DoRA, ALLoRA",
    "table2": "gaps ALLoRA - LoRA and ALLoRA - ALLoRA+D",
    "table3": "commonsense reasoning",
    "table4": "gaps to ALLoRA-OD, ASF-LoRA and LoRA x eta",
    "table6": "perception: LoRA, ALLoRA+D, ALLoRA",
    "table7": "perception: ALLoRA-OD, ASF-LoRA, LoRA x eta",
    "fair": "Table 6 with every method's own learning rate",
    "norm-free": "LoRA without dropout as the control",
    "optimisers": "the rule under SGD, momentum, AdamW, Adafactor, coupled and decoupled",
    "eta": "sensitivity to eta",
    "adaptors": "other adaptor functions",
    "memorisation": "small data, long training: which regulariser helps",
}
"""What each shows: the paper's own, then the questions it leaves open. The module has the study's name (with _ for -) and
holds STUDY."""

QUICK = ("fig1", "fig3", "fig6", "table5", "proposition1")
"""Minutes in all."""


def load(name: str) -> Study:
    """A study.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in TITLES:
        raise ConfigError(f"there is no study {name!r}", remedy=did_you_mean(name, [*TITLES, "quick", "all"]))
    return importlib.import_module(f".{name.replace('-', '_')}", __package__).STUDY
