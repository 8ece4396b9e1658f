"""How sensitive ALLoRA is to eta, with the rule on the gradient and on the update, and LoRA at eta times the learning rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from ..cells import Cell, Key, Result, Settings, values
from ..classify import LIBRARIES, classify, data_sets
from ..data import StudyData
from ..drawing import average, axes_grid, deviation, save
from ..study import Claim, Study, both_scales, by_mean, keys, minus

ARMS = {
    "gradient": "ALLoRA, rule on the gradient", "update": "ALLoRA, rule on the update", "LoRA": "LoRA at eta times the rate",
}  # fmt: skip
WHERE = "left open by the paper"


def work(key: Key, settings: Settings, data: StudyData) -> Result:
    """One run."""
    eta, run = math.sqrt(key["eta2"]), settings["run"]
    if key["arm"] == "LoRA":
        own = {"method": "lora", "dropout": 0.0, "learning_rate": eta * run["learning_rate"]}
    else:
        own = {"method": "allora", "eta": eta, "apply_to": key["arm"]}
    return classify(run | own | {"seed": key["seed"]}, data)


def ranges(cells: Sequence[Cell], settings: Settings, arm: str) -> list[float]:
    """The highest accuracy minus the lowest over eta, per seed."""
    by_eta = [values(cells, "accuracy", arm=arm, eta2=eta2) for eta2 in settings["eta2"]]
    return [max(found) - min(found) for found in zip(*by_eta, strict=True)]


def update_over_lora(cells: Sequence[Cell], settings: Settings) -> list[float]:
    """The rule on the update minus LoRA, at the largest eta, per seed."""
    return minus(*(values(cells, "accuracy", arm=arm, eta2=max(settings["eta2"])) for arm in ("update", "LoRA")))


def draw(cells: Sequence[Cell], settings: Settings, path: Path) -> None:
    """Accuracy and row norm at the end by eta squared with their standard deviations, a line per arm."""
    etas = settings["eta2"]
    figure, axes = axes_grid(1, 2, size=(4, 3))
    for ax, name, label in zip(axes[0], ("accuracy", "row_norm"), ("accuracy, %", "mean row norm of BA"), strict=True):
        for number, arm in enumerate(ARMS):
            groups = [values(cells, name, arm=arm, eta2=eta2) for eta2 in etas]
            means, deviations = list(map(average, groups)), list(map(deviation, groups))
            ax.errorbar(etas, means, deviations, fmt="o-", ms=3, lw=1.2, capsize=2, color=f"C{number}", label=arm)
        ax.set_xscale("log", base=2)
        ax.set_xlabel("η²", fontsize=8)
        ax.set_title(label, fontsize=9)
    axes[0][1].set_yscale("log")
    axes[0][0].legend(frameon=False, fontsize=7)
    save(figure, path)


STUDY = Study(
    name="eta",
    claims=[
        *(
            Claim(f"{arm}-range", WHERE, f"{label}: eta hardly matters (highest minus lowest accuracy over eta^2).",
                  "not measured", by_mean(lambda cells, s, arm=arm: ranges(cells, s, arm), unit=" points", below=2),
                  by_paper=False)
            for arm, label in ARMS.items()
        ),
        Claim("tapers", WHERE, "Tapering protects from too large a rate: at the largest eta the rule on the update is more "
              "accurate than LoRA at eta times the rate.", "not measured", by_mean(update_over_lora, unit=" points", above=0),
              by_paper=False),
    ],
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
    differs=both_scales(
        "A question of our own. Adafactor and cosine schedule as in Table 6 here; LoRA without dropout."
    ),
    plan=lambda s: keys(arm=ARMS, eta2=s["eta2"], seed=range(s["seeds"])),
    work=work,
    draw=draw,
    needs=data_sets,
    libraries=LIBRARIES,
)  # fmt: skip
