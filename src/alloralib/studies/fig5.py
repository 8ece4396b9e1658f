"""Figure 5 (right): the mean row norm of BA by step, LoRA at several learning rates and ALLoRA. (Left: Table 5.)"""

from __future__ import annotations

from collections.abc import Sequence

from ..reporting.study_curves import draw_norms
from .cells import Cell, Key, Result, Settings, results
from .classify import Run, classify
from .frame import Claim, Finding, Study, judged
from .images import StudyData

ETA = 2.0
ARMS: dict[str, Settings] = {
    "LoRA, l_b": {"method": "lora", "dropout": 0.0},
    "LoRA, 2 l_b": {"method": "lora", "dropout": 0.0, "times": ETA},
    "LoRA, 4 l_b": {"method": "lora", "dropout": 0.0, "times": 2 * ETA},
    "ALLoRA, eta = 2": {"method": "allora", "eta": ETA},
    "ALLoRA, eta = 2, on the update": {"method": "allora", "eta": ETA, "apply_to": "update"},
}
"""Dropout is left out of LoRA here: the figure is about the rule."""
FAST, PAPERS, DECOUPLED = "LoRA, 2 l_b", "ALLoRA, eta = 2", "ALLoRA, eta = 2, on the update"


def plan(settings: Settings) -> list[Key]:
    """A cell per optimiser, arm and seed."""
    return [
        {"optimiser": optimiser, "arm": arm, "seed": seed}
        for optimiser in settings["optimisers"]
        for arm in ARMS
        for seed in range(settings["seeds"])
    ]


def work(key: Key, settings: Settings, data: StudyData) -> Result:
    """The mean row norm of BA after every few steps."""
    steps: list[int] = []
    norms: list[float] = []

    def watch(run: Run) -> None:
        if run.step % settings["every"] == 0:
            steps.append(run.step)
            norms.append(run.row_norm())

    arm = dict(ARMS[key["arm"]])
    own = settings["optimisers"][key["optimiser"]]
    rate = own["learning_rate"] * arm.pop("times", 1.0)
    run = settings["run"] | own | arm | {"optimizer": key["optimiser"], "learning_rate": rate, "seed": key["seed"]}
    return classify(run, data, watch) | {"steps": steps, "norms": norms}


def judge(cells: Sequence[Cell], settings: Settings) -> list[Finding]:
    """ALLoRA's norm over that of LoRA at eta l_b: near 1 at the first step, lower at the end."""
    found = []
    for optimiser in settings["optimisers"]:
        for name, arm in (("", PAPERS), ("-update", DECOUPLED)):
            pairs = list(zip(*(results(cells, "norms", optimiser=optimiser, arm=a) for a in (arm, FAST)), strict=True))
            first = [a[1] / b[1] for a, b in pairs]
            falls = [a[-1] / b[-1] - a[1] / b[1] for a, b in pairs]
            found.append(judged(f"start-{optimiser}{name}", first, above=0.8, below=1.25, over="seeds"))
            found.append(judged(f"taper-{optimiser}{name}", falls, below=0, over="seeds"))
    return found


def _claims() -> list[Claim]:
    made = []
    for optimiser in ("adafactor", "sgd"):
        for name, by_paper in (("", True), ("-update", False)):
            where = "Figure 5, right" if by_paper else "the rule on the update"
            under = f"under {optimiser}"
            made.append(
                Claim(
                    f"start-{optimiser}{name}",
                    where,
                    f"it leaves 0 as fast as LoRA at eta l_b, {under} (ratio of the norms at the first look)",
                    "about 1, read off",
                    by_paper=by_paper,
                )
            )
            made.append(
                Claim(
                    f"taper-{optimiser}{name}",
                    where,
                    f"then it tapers, {under} (the ratio at the end minus at first)",
                    "below 0, read off",
                    by_paper=by_paper,
                )
            )
    return made


STUDY = Study(
    name="fig5",
    title="mean row norm of BA by step, LoRA and ALLoRA (Figure 5, right)",
    claims=tuple(_claims()),
    needs=lambda settings: (settings["run"]["data"],),
    libraries=("transformers", "peft"),
    settings={
        "laptop": {
            "seeds": 3, "every": 2,
            "optimisers": {
                "adafactor": {"learning_rate": 1e-3}, "sgd": {"learning_rate": 0.1, "max_grad_norm": 1e9, "weight_decay": 0.0},
            },
            "run": {
                "model": "minilm-l6", "data": "rotten_tomatoes", "train_rows": 256, "test_rows": 16, "r": 16, "batch_size": 8,
                "epochs": 2, "schedule": "constant", "warmup": 0.0, "max_length": 48,
            },
        },
        "paper": {
            "seeds": 3, "every": 5,
            "optimisers": {
                "adafactor": {"learning_rate": 1e-4}, "sgd": {"learning_rate": 0.1, "max_grad_norm": 1e9, "weight_decay": 0.0},
            },
            "run": {
                "model": "Snowflake/snowflake-arctic-embed-xs", "data": "rotten_tomatoes", "r": 32, "batch_size": 64,
                "epochs": 2, "schedule": "constant", "warmup": 0.0, "max_length": 256,
            },
        },
    },
    differs={
        "laptop": "MiniLM-L6, of the architecture and size of arctic-embed-xs, on 256 rows of Rotten Tomatoes; 64 steps of "
        "batch 8 at a constant rate. The paper's optimiser is not stated: Adafactor as in its lab's harness, and plain SGD, at "
        "a fifth of the rate first tried: there one run at four times it diverged. The new head learns at the run's rate, so "
        "LoRA at 2 l_b has a faster head than ALLoRA at l_b: under SGD row norms stay below .001, where s is within .2 % of "
        "eta, and what looks like tapering is the head.",
        "paper": "Model and data are the paper's; optimiser, rate and batch are not stated: Adafactor as in its lab's harness, "
        "and plain SGD.",
    },
    plan=plan,
    work=work,
    judge=judge,
    draw=draw_norms,
)  # fmt: skip
