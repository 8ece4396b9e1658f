"""The rule under SGD, momentum, AdamW and Adafactor, on the gradient and on the update: row norms, s(t), accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from math import log

from ..reporting.study_curves import draw_optimisers
from .cells import Cell, Key, Result, Settings, results
from .classify import Run, classify
from .frame import Claim, Finding, Study, judged
from .images import StudyData

ETA = 2.0
ARMS: dict[str, Settings] = {
    "LoRA": {"method": "lora", "dropout": 0.0},
    "gradient": {"method": "allora", "eta": ETA},
    "update": {"method": "allora", "eta": ETA, "apply_to": "update"},
}
OPTIMISERS = ("sgd", "momentum", "adamw", "adafactor")
ADAPTIVE = ("adamw", "adafactor")
CHANCE = log(6)
"""Cross-entropy of a guess among the six classes of trec and of emotion, in nats."""


def plan(settings: Settings) -> list[Key]:
    """A cell per optimiser, arm and seed."""
    return [
        {"optimiser": optimiser, "arm": arm, "seed": seed}
        for optimiser in OPTIMISERS
        for arm in ARMS
        for seed in range(settings["seeds"])
    ]


def work(key: Key, settings: Settings, data: StudyData) -> Result:
    """Mean row norm and mean s(eta) at these weights by step; accuracy at the end."""
    steps: list[int] = []
    norms: list[float] = []
    scales: list[float] = []

    def watch(run: Run) -> None:
        if run.step % settings["every"] == 0:
            steps.append(run.step)
            norms.append(run.row_norm())
            scales.append(run.mean_scale(ETA))

    run = settings["run"] | settings["optimisers"][key["optimiser"]] | ARMS[key["arm"]]
    found = classify(run | {"optimizer": key["optimiser"], "seed": key["seed"]}, data, watch)
    return found | {"steps": steps, "norms": norms, "scales": scales}


def judge(cells: Sequence[Cell], settings: Settings) -> list[Finding]:
    """How much larger than LoRA's the norm is after the first steps, and whether the accuracy differs at the end."""
    found = []
    for optimiser in OPTIMISERS:
        ends = results(cells, "train_loss", optimiser=optimiser, arm="LoRA")
        found.append(judged(f"{optimiser}-learns", ends, unit=" nats", below=CHANCE, over="seeds"))
        for arm in ("gradient", "update"):
            pairs = zip(*(results(cells, "norms", optimiser=optimiser, arm=a) for a in (arm, "LoRA")), strict=True)
            ratios = [a[1] / b[1] for a, b in pairs]
            cancels = arm == "gradient" and optimiser in ADAPTIVE
            above, below = (0.8, 1.25) if cancels else (1.25, None)
            found.append(judged(f"{optimiser}-{arm}", ratios, above=above, below=below, over="seeds"))
        for arm in ("gradient", "update"):
            scores = (results(cells, "accuracy", optimiser=optimiser, arm=a) for a in (arm, "LoRA"))
            gaps = [a - b for a, b in zip(*scores, strict=True)]
            found.append(judged(f"{optimiser}-{arm}-accuracy", gaps, unit=" points", above=0, over="seeds"))
    return found


def _claims() -> list[Claim]:
    made = []
    for optimiser in OPTIMISERS:
        text = f"{optimiser}: LoRA learns at this rate (training loss at the end, chance is {CHANCE:.2f})"
        made.append(Claim(f"{optimiser}-learns", "check", text, "not measured", by_paper=False))
        for arm in ("gradient", "update"):
            cancels = arm == "gradient" and optimiser in ADAPTIVE
            text = "eta = 2 has no effect on the first steps" if cancels else "eta = 2 speeds up the first steps"
            made.append(
                Claim(
                    f"{optimiser}-{arm}",
                    "method.md, section 4",
                    f"{optimiser}, rule on the {arm}: {text} (row norm over LoRA's)",
                    "derived",
                    by_paper=False,
                )
            )
        for arm in ("gradient", "update"):
            made.append(
                Claim(
                    f"{optimiser}-{arm}-accuracy",
                    "asked by the reviewers",
                    f"{optimiser}, rule on the {arm}: more accurate than LoRA at the same rate",
                    "not measured",
                    by_paper=False,
                )
            )
    return made


STUDY = Study(
    name="optimisers",
    title="the rule under SGD, momentum, AdamW, Adafactor, coupled and decoupled",
    claims=tuple(_claims()),
    needs=lambda settings: (settings["run"]["data"],),
    libraries=("transformers", "peft"),
    settings={
        "laptop": {
            "seeds": 5, "every": 4,
            "optimisers": {
                "sgd": {"learning_rate": 2.0}, "momentum": {"learning_rate": 0.2}, "adamw": {"learning_rate": 1e-3},
                "adafactor": {"learning_rate": 2e-3},
            },
            "run": {
                "model": "minilm-l6", "data": "trec", "train_rows": 192, "test_rows": 300, "r": 16, "batch_size": 8,
                "epochs": 2, "schedule": "constant", "warmup": 0.0, "weight_decay": 0.0, "max_grad_norm": 1e9,
                "max_length": 48,
            },
        },
        "paper": {
            "seeds": 5, "every": 10,
            "optimisers": {
                "sgd": {"learning_rate": 0.1}, "momentum": {"learning_rate": 0.01}, "adamw": {"learning_rate": 1e-4},
                "adafactor": {"learning_rate": 1e-4},
            },
            "run": {
                "model": "Snowflake/snowflake-arctic-embed-l", "data": "emotion", "r": 32, "batch_size": 64, "epochs": 2,
                "schedule": "constant", "warmup": 0.0, "weight_decay": 0.0, "max_grad_norm": 1e9, "max_length": 256,
            },
        },
    },
    differs=dict.fromkeys(
        ("laptop", "paper"),
        "A question of ours. Constant rates, no clipping, no weight decay, no dropout; each optimiser's rate is set and the "
        "same for its three arms.",
    ),
    plan=plan,
    work=work,
    judge=judge,
    draw=draw_optimisers,
)  # fmt: skip
