"""Little data and long training: which regularizer helps against memorization?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..cells import Cell, Key, Result, Settings, values
from ..classify import LIBRARIES, Run, classify, data_sets
from ..data import StudyData
from ..drawing import axes_grid, mean_curve, save
from ..study import Claim, Judge, Study, both_scales, by_mean, keys, minus

ARMS: dict[str, Settings] = {
    "LoRA without dropout": {"method": "lora", "dropout": 0.0},
    "LoRA, dropout .05": {"method": "lora", "dropout": 0.05},
    "LoRA, dropout .2": {"method": "lora", "dropout": 0.2},
    "LoRA, dropout .4": {"method": "lora", "dropout": 0.4},
    "LoRA, weight decay .3": {"method": "lora", "dropout": 0.0, "weight_decay": 0.3},
    "ALLoRA": {"method": "allora"},
    "ALLoRA+D": {"method": "allora-d"},
}
CONTROL = "LoRA without dropout"
OTHERS = tuple(name for name in ARMS if name != CONTROL)


def work(key: Key, settings: Settings, data: StudyData) -> Result:
    """A long run on few rows, with test loss, test accuracy and training loss after some of the epochs."""
    looks: dict[str, list[float]] = {"test_loss": [], "test_accuracy": [], "training_loss": []}
    seen = set()

    def watch(run: Run) -> None:
        if run.epoch in settings["looks"] and run.epoch not in seen:
            seen.add(run.epoch)
            found, trained = run.score("test"), run.score("train")
            for name, value in zip(looks, (found["loss"], found["accuracy"], trained["loss"]), strict=True):
                looks[name].append(value)

    run = settings["run"] | {"epochs": max(settings["looks"])} | ARMS[key["arm"]] | {"seed": key["seed"]}
    return classify(run, data, watch) | looks


def last(cells: Sequence[Cell], entry: str, arm: str) -> list[float]:
    """The value at the end of the runs, per seed."""
    return [path[-1] for path in values(cells, entry, arm=arm)]


def rise(cells: Sequence[Cell], settings: Settings) -> list[float]:
    """The control's test loss at the end minus its best, per seed."""
    return [path[-1] - min(path) for path in values(cells, "test_loss", arm=CONTROL)]


def draw(cells: Sequence[Cell], settings: Settings, path: Path) -> None:
    """Training loss, test loss and test accuracy by epoch, averaged over seeds, a color per arm."""
    figure, axes = axes_grid(1, 3, size=(3.6, 3.2))
    for ax, name in zip(axes[0], ("training_loss", "test_loss", "test_accuracy"), strict=True):
        for number, arm in enumerate(ARMS):
            curve = mean_curve(values(cells, name, arm=arm))
            ax.plot(settings["looks"], curve, "o-", ms=2.5, lw=1.2, color=f"C{number}", label=arm)
        ax.set_title(name.replace("_", " "), fontsize=9)
        ax.set_xlabel("epoch", fontsize=8)
    axes[0][0].set_yscale("log")
    axes[0][2].legend(frameon=False, fontsize=6)
    save(figure, path)


def claim(name: str, text: str, judge: Judge) -> Claim:
    """A question that follows from the paper's section 3.1."""
    return Claim(name, "beyond section 3.1", text, "not measured", judge, by_paper=False)


STUDY = Study(
    name="memorisation",
    claims=[
        claim("memorises", "LoRA without dropout memorizes the training rows (training loss at the end).",
              by_mean(lambda cells, s: last(cells, "training_loss", CONTROL), below=0.05)),
        claim("rises", "Its test loss rises again (at the end minus at its best).", by_mean(rise, above=0)),
        *(
            claim(arm, f"{arm}: the test loss at the end is lower than with LoRA without dropout.",
                  by_mean(lambda cells, s, arm=arm: minus(*(last(cells, "test_loss", a) for a in (arm, CONTROL))), below=0))
            for arm in OTHERS
        ),
    ],
    settings={
        "laptop": {
            "seeds": 5, "looks": [2, 5, 10, 20],
            "run": {
                "model": "minilm-l6", "data": "trec", "train_rows": 64, "test_rows": 300, "r": 16, "batch_size": 8,
                "learning_rate": 1e-3, "schedule": "constant", "max_length": 48,
            },
        },
        "paper": {
            "seeds": 5, "looks": [2, 5, 10, 20, 50, 100],
            "run": {
                "model": "Qwen/Qwen2-0.5B", "data": "emotion", "train_rows": 1000, "r": 32, "batch_size": 16,
                "learning_rate": 1e-4, "schedule": "constant", "max_length": 256,
            },
        },
    },
    differs=both_scales(
        "A question of our own. All arms have the same constant learning rate (Adafactor), rank and batch size; the models' "
        "own dropout is off. Weight decay is the optimizer's: each step shrinks the weights by the learning rate times .3."
    ),
    plan=lambda s: keys(arm=ARMS, seed=range(s["seeds"])),
    work=work,
    draw=draw,
    needs=data_sets,
    libraries=LIBRARIES,
)  # fmt: skip
