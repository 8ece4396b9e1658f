"""How sensitive ALLoRA is to eta, with the rule on the gradient and on the update, beside LoRA at eta times the rate."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..reporting.study_curves import draw_eta
from .cells import Cell, Key, Result, Settings, results
from .classify import classify
from .frame import Claim, Finding, Study, judged
from .images import StudyData

ARMS = ("gradient", "update", "LoRA")


def plan(settings: Settings) -> list[Key]:
    """A cell per arm, eta squared and seed."""
    return [
        {"arm": arm, "eta2": eta2, "seed": seed}
        for arm in ARMS
        for eta2 in settings["eta2"]
        for seed in range(settings["seeds"])
    ]


def work(key: Key, settings: Settings, data: StudyData) -> Result:
    """One run."""
    eta, run = math.sqrt(key["eta2"]), settings["run"]
    if key["arm"] == "LoRA":
        own = {"method": "lora", "dropout": 0.0, "learning_rate": eta * run["learning_rate"]}
    else:
        own = {"method": "allora", "eta": eta, "apply_to": key["arm"]}
    return classify(run | own | {"seed": key["seed"]}, data)


def judge(cells: Sequence[Cell], settings: Settings) -> list[Finding]:
    """The range of the accuracy over eta, per seed: below 2 points?"""
    found = []
    for arm in ARMS:
        by_eta = [results(cells, "accuracy", arm=arm, eta2=eta2) for eta2 in settings["eta2"]]
        ranges = [max(values) - min(values) for values in zip(*by_eta, strict=True)]
        found.append(judged(f"{arm}-range", ranges, unit=" points", below=2, over="seeds"))
    high = max(settings["eta2"])
    pairs = zip(*(results(cells, "accuracy", arm=arm, eta2=high) for arm in ("update", "LoRA")), strict=True)
    found.append(judged("tapers", [a - b for a, b in pairs], unit=" points", above=0, over="seeds"))
    return found


_WHERE = "left open by the paper"
_LABELS = {
    "gradient": "ALLoRA, rule on the gradient", "update": "ALLoRA, rule on the update", "LoRA": "LoRA at eta times the rate",
}  # fmt: skip

STUDY = Study(
    name="eta",
    title="sensitivity to eta",
    claims=(
        *(
            Claim(f"{arm}-range", _WHERE, f"{label}: eta hardly matters (range of the accuracy over eta^2)", "not measured",
                  by_paper=False)
            for arm, label in _LABELS.items()
        ),
        Claim("tapers", _WHERE, "tapering protects from too large a rate: at the largest eta the rule on the update is better "
              "than LoRA at eta times the rate", "not measured", by_paper=False),
    ),
    needs=lambda settings: (settings["run"]["data"],),
    libraries=("transformers", "peft"),
    settings={
        "laptop": {
            "eta2": [0.25, 1, 4, 16, 64], "seeds": 5,
            "run": {
                "model": "minilm-l6", "data": "trec", "train_rows": 128, "test_rows": 300, "r": 16, "batch_size": 8,
                "epochs": 2, "learning_rate": 3e-3, "max_length": 48,
            },
        },
        "paper": {
            "eta2": [0.25, 1, 2, 4, 16, 64], "seeds": 5,
            "run": {
                "model": "Snowflake/snowflake-arctic-embed-l", "data": "emotion", "r": 32, "batch_size": 64, "epochs": 2,
                "learning_rate": 1e-4, "max_length": 256,
            },
        },
    },
    differs=dict.fromkeys(
        ("laptop", "paper"), "A question of ours. Adafactor and cosine as in Table 6 here; LoRA without dropout."
    ),
    plan=plan,
    work=work,
    judge=judge,
    draw=draw_eta,
)  # fmt: skip
