"""Figure 5 (right): the mean row norm of BA during training, LoRA at several learning rates and ALLoRA. (Left: Table 5.)"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..cells import Cell, Key, Result, Settings, results, values
from ..classify import LIBRARIES, Run, classify, data_sets
from ..data import StudyData
from ..drawing import axes_grid, draw_runs, save
from ..study import Claim, Study, by_mean, keys

ETA = 2.0
ARMS: dict[str, Settings] = {
    "LoRA, l_b": {"method": "lora", "dropout": 0.0},
    "LoRA, 2 l_b": {"method": "lora", "dropout": 0.0, "times": ETA},
    "LoRA, 4 l_b": {"method": "lora", "dropout": 0.0, "times": 2 * ETA},
    "ALLoRA, eta = 2": {"method": "allora", "eta": ETA},
    "ALLoRA, eta = 2, on the update": {"method": "allora", "eta": ETA, "apply_to": "update"},
}
"""LoRA has no dropout here, because the figure is about the rule. `times` multiplies the learning rate l_b."""
FAST, ON_GRADIENT, ON_UPDATE = "LoRA, 2 l_b", "ALLoRA, eta = 2", "ALLoRA, eta = 2, on the update"


def work(key: Key, settings: Settings, data: StudyData) -> Result:
    """The mean row norm of BA every few steps."""
    looks: Result = {"steps": [], "norms": []}

    def watch(run: Run) -> None:
        if run.step % settings["every"] == 0:
            looks["steps"].append(run.step)
            looks["norms"].append(run.row_norm())

    arm = dict(ARMS[key["arm"]])
    own = settings["optimisers"][key["optimiser"]]
    rate = own["learning_rate"] * arm.pop("times", 1.0)
    run = settings["run"] | own | arm | {"optimizer": key["optimiser"], "learning_rate": rate, "seed": key["seed"]}
    return classify(run, data, watch) | looks


def ratios(cells: Sequence[Cell], optimizer: str, arm: str) -> list[tuple[float, float]]:
    """ALLoRA's row norm over that of LoRA at eta l_b, at the first look and at the end, per seed."""
    ours, fast = (values(cells, "norms", optimiser=optimizer, arm=a) for a in (arm, FAST))
    return [(a[1] / b[1], a[-1] / b[-1]) for a, b in zip(ours, fast, strict=True)]


def claims(optimizer: str, arm: str) -> list[Claim]:
    """The claims about the rule under one optimizer."""
    by_paper = arm == ON_GRADIENT
    name, where = ("", "Figure 5, right") if by_paper else ("-update", "the rule on the update")
    return [
        Claim(f"start-{optimizer}{name}", where, "ALLoRA's row norm leaves 0 as fast as that of LoRA at eta l_b, under "
              f"{optimizer} (ratio of the norms at the first look).", "about 1, read off",
              by_mean(lambda cells, s: [first for first, _ in ratios(cells, optimizer, arm)], above=0.8, below=1.25),
              by_paper),
        Claim(f"taper-{optimizer}{name}", where, f"Then it grows more slowly, under {optimizer} (that ratio at the end minus "
              "at the first look).", "below 0, read off",
              by_mean(lambda cells, s: [end - first for first, end in ratios(cells, optimizer, arm)], below=0), by_paper),
    ]  # fmt: skip


def draw(cells: Sequence[Cell], settings: Settings, path: Path) -> None:
    """The mean row norm of BA by step, a panel per optimizer, a color per arm; thin lines are seeds."""
    optimizers = list(settings["optimisers"])
    figure, axes = axes_grid(1, len(optimizers), size=(4.4, 3.2))
    for ax, optimizer in zip(axes[0], optimizers, strict=True):
        for number, arm in enumerate(ARMS):
            found = results(cells, optimiser=optimizer, arm=arm)
            draw_runs(ax, found[0]["steps"], [r["norms"] for r in found], f"C{number}", arm)
        ax.set_title(f"mean row norm of BA, {optimizer}", fontsize=9)
        ends = sorted(r["norms"][-1] for r in results(cells, optimiser=optimizer))
        ax.set_ylim(0, 1.2 * max(end for end in ends if end <= 10 * ends[len(ends) // 2]))  # diverged runs may leave the axis
        ax.set_xlabel("step", fontsize=8)
    axes[0][0].legend(frameon=False, fontsize=7)
    save(figure, path)


STUDY = Study(
    name="fig5",
    claims=[
        claim for optimizer in ("adafactor", "sgd") for arm in (ON_GRADIENT, ON_UPDATE) for claim in claims(optimizer, arm)
    ],
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
        "laptop": "MiniLM-L6, which has the architecture and size of arctic-embed-xs, on 256 rows of Rotten Tomatoes; 64 steps "
        "with batch size 8 at a constant learning rate. The paper does not state the optimizer. Here: Adafactor as in the "
        "authors' public code, and plain SGD at a fifth of the rate first tried, because one run at four times that rate "
        "diverged. The new head is trained at the run's learning rate, so LoRA at 2 l_b has a faster head than ALLoRA at l_b. "
        "Under SGD row norms stay below .001, where s differs from eta by less than .2 %; what looks like tapering there is "
        "the effect of the head.",
        "paper": "Model and data are the paper's. It does not state optimizer, learning rate and batch size. Here: Adafactor "
        "as in the authors' public code, and plain SGD.",
    },
    plan=lambda s: keys(optimiser=s["optimisers"], arm=ARMS, seed=range(s["seeds"])),
    work=work,
    draw=draw,
    needs=data_sets,
    libraries=LIBRARIES,
)  # fmt: skip
