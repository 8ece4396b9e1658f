"""Other adaptor functions, which the paper names as future work: does it matter how the scale falls with the row's norm?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..ops.scale import adaptor, paper_adaptor
from ..reporting.study_curves import draw_adaptors
from .cells import Cell, Key, Result, Settings, results
from .classify import classify
from .frame import Claim, Finding, Study, judged
from .images import StudyData

PAPERS = "1/sqrt(n + 1/eta^2)"


def _inverse(n: Tensor, eta: float) -> Tensor:
    return eta / (1 + eta * n)


def _squared(n: Tensor, eta: float) -> Tensor:
    return eta / torch.sqrt(1 + (eta * n) ** 2)


def _exponential(n: Tensor, eta: float) -> Tensor:
    return eta * torch.exp(-(eta**2) * n / 2)


def _constant(n: Tensor, eta: float) -> Tensor:
    return torch.full_like(n, eta)


ADAPTORS = {
    PAPERS: paper_adaptor,
    "1/(n + 1/eta)": _inverse,
    "1/sqrt(n^2 + 1/eta^2)": _squared,
    "eta exp(-eta^2 n/2)": _exponential,
    "eta, no taper": _constant,
}
"""All are eta at 0; the exponential has the paper's slope there too."""
OTHERS = tuple(name for name in ADAPTORS if name != PAPERS)


def plan(settings: Settings) -> list[Key]:
    """A cell per function, place of the rule and seed."""
    return [
        {"adaptor": name, "apply_to": apply_to, "seed": seed}
        for name in ADAPTORS
        for apply_to in ("gradient", "update")
        for seed in range(settings["seeds"])
    ]


def work(key: Key, settings: Settings, data: StudyData) -> Result:
    """One run with that function in the place of the paper's."""
    with adaptor(ADAPTORS[key["adaptor"]]):
        own = {"method": "allora", "eta": settings["eta"], "apply_to": key["apply_to"], "seed": key["seed"]}
        return classify(settings["run"] | own, data)


def judge(cells: Sequence[Cell], settings: Settings) -> list[Finding]:
    """Each against the paper's, paired by seed."""
    found = []
    for apply_to in ("gradient", "update"):
        for name in OTHERS:
            scores = (results(cells, "accuracy", adaptor=a, apply_to=apply_to) for a in (name, PAPERS))
            gaps = [a - b for a, b in zip(*scores, strict=True)]
            found.append(judged(f"{apply_to}: {name}", gaps, unit=" points", above=0, over="seeds"))
    return found


STUDY = Study(
    name="adaptors",
    title="other adaptor functions",
    claims=tuple(
        Claim(f"{apply_to}: {name}", "future work of the paper", f"s = {name} on the {apply_to} is better than the paper's",
              "not measured", by_paper=False)
        for apply_to in ("gradient", "update")
        for name in OTHERS
    ),
    needs=lambda settings: (settings["run"]["data"],),
    libraries=("transformers", "peft"),
    settings={
        "laptop": {
            "eta": 4.0, "seeds": 5,
            "run": {
                "model": "minilm-l6", "data": "trec", "train_rows": 128, "test_rows": 300, "r": 16, "batch_size": 8,
                "epochs": 2, "learning_rate": 3e-3, "max_length": 48,
            },
        },
        "paper": {
            "eta": 4.0, "seeds": 5,
            "run": {
                "model": "Snowflake/snowflake-arctic-embed-l", "data": "emotion", "r": 32, "batch_size": 64, "epochs": 2,
                "learning_rate": 1e-4, "max_length": 256,
            },
        },
    },
    differs=dict.fromkeys(
        ("laptop", "paper"), "A question of ours. Adafactor and cosine as in Table 6 here; eta = 4, where tapering is felt."
    ),
    plan=plan,
    work=work,
    judge=judge,
    draw=draw_adaptors,
)  # fmt: skip
