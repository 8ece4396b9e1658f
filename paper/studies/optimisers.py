"""The rule under SGD, momentum, AdamW and Adafactor, on the gradient and on the update: row norms, mean scale, accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from pathlib import Path

from ..cells import Cell, Key, Result, Settings, results, values
from ..classify import LIBRARIES, Run, classify, data_sets
from ..data import StudyData
from ..drawing import axes_grid, draw_dots, draw_runs, save
from ..study import Claim, Study, both_scales, by_mean, keys, minus

ETA = 2.0
ARMS: dict[str, Settings] = {
    "LoRA": {"method": "lora", "dropout": 0.0},
    "gradient": {"method": "allora", "eta": ETA},
    "update": {"method": "allora", "eta": ETA, "apply_to": "update"},
}
RULES = ("gradient", "update")
OPTIMIZERS = ("sgd", "momentum", "adamw", "adafactor")
ADAPTIVE = ("adamw", "adafactor")
CHANCE = log(6)
"""The cross-entropy, in nats, of guessing among the six classes of TREC or Emotion."""


def work(key: Key, settings: Settings, data: StudyData) -> Result:
    """The mean row norm and the mean scale s(eta) by step, and the accuracy at the end."""
    looks: Result = {"steps": [], "norms": [], "scales": []}

    def watch(run: Run) -> None:
        if run.step % settings["every"] == 0:
            for name, value in zip(looks, (run.step, run.row_norm(), run.mean_scale(ETA)), strict=True):
                looks[name].append(value)

    run = settings["run"] | settings["optimisers"][key["optimiser"]] | ARMS[key["arm"]]
    return classify(run | {"optimizer": key["optimiser"], "seed": key["seed"]}, data, watch) | looks


def end_losses(cells: Sequence[Cell], optimizer: str) -> list[float]:
    """LoRA's training loss at the end, per seed."""
    return values(cells, "train_loss", optimiser=optimizer, arm="LoRA")


def first_steps(cells: Sequence[Cell], optimizer: str, arm: str) -> list[float]:
    """The row norm after the first steps over LoRA's, per seed."""
    ours, loras = (values(cells, "norms", optimiser=optimizer, arm=a) for a in (arm, "LoRA"))
    return [a[1] / b[1] for a, b in zip(ours, loras, strict=True)]


def more_accurate(cells: Sequence[Cell], optimizer: str, arm: str) -> list[float]:
    """The accuracy minus LoRA's, per seed."""
    return minus(*(values(cells, "accuracy", optimiser=optimizer, arm=a) for a in (arm, "LoRA")))


def claims(optimizer: str) -> list[Claim]:
    """The claims about one optimizer."""
    found = [
        Claim(f"{optimizer}-learns", "check", f"{optimizer}: LoRA learns at this learning rate (training loss at the end; "
              f"guessing gives {CHANCE:.2f}).", "not measured",
              by_mean(lambda cells, s: end_losses(cells, optimizer), below=CHANCE, unit=" nats"), by_paper=False),
    ]  # fmt: skip
    for arm in RULES:
        cancels = arm == "gradient" and optimizer in ADAPTIVE
        above, below = (0.8, 1.25) if cancels else (1.25, None)
        effect = "does not change" if cancels else "speeds up"
        found.append(
            Claim(f"{optimizer}-{arm}", "effect of the optimizer", f"{optimizer}, rule on the {arm}: eta = 2 "
                  f"{effect} the first steps (row norm over LoRA's).", "derived",
                  by_mean(lambda cells, s, arm=arm: first_steps(cells, optimizer, arm), above=above, below=below),
                  by_paper=False)
        )  # fmt: skip
    for arm in RULES:
        found.append(
            Claim(f"{optimizer}-{arm}-accuracy", "asked by the reviewers", f"{optimizer}, rule on the {arm}: more accurate "
                  "than LoRA at the same learning rate.", "not measured",
                  by_mean(lambda cells, s, arm=arm: more_accurate(cells, optimizer, arm), unit=" points", above=0),
                  by_paper=False)
        )  # fmt: skip
    return found


def draw(cells: Sequence[Cell], settings: Settings, path: Path) -> None:
    """A row per optimizer: row norm by step, mean scale by step, accuracy at the end."""
    figure, axes = axes_grid(len(OPTIMIZERS), 3, size=(3.2, 1.9))
    for row, optimizer in zip(axes, OPTIMIZERS, strict=True):
        for number, arm in enumerate(ARMS):
            found = results(cells, optimiser=optimizer, arm=arm)
            for ax, name in zip(row, ("norms", "scales"), strict=False):
                draw_runs(ax, found[0]["steps"], [r[name] for r in found], f"C{number}", arm)
            draw_dots(row[2], number, [r["accuracy"] for r in found], f"C{number}")
        for ax, name in zip(row, ("row norm", "mean s(2)", "accuracy, %"), strict=True):
            ax.set_title(f"{optimizer}: {name}", fontsize=8)
        row[2].set_xticks(range(len(ARMS)), list(ARMS))
    axes[0][0].legend(frameon=False, fontsize=7)
    save(figure, path)


STUDY = Study(
    name="optimisers",
    claims=[claim for optimizer in OPTIMIZERS for claim in claims(optimizer)],
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
    differs=both_scales(
        "A question of our own. Constant learning rates, no clipping, no weight decay, no dropout. Each optimizer has a fixed "
        "learning rate, which is the same for its three arms."
    ),
    plan=lambda s: keys(optimiser=OPTIMIZERS, arm=ARMS, seed=range(s["seeds"])),
    work=work,
    draw=draw,
    needs=data_sets,
    libraries=LIBRARIES,
)  # fmt: skip
