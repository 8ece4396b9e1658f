"""Small data, long training: which regulariser helps?"""

from __future__ import annotations

from collections.abc import Sequence

from ..reporting.study_curves import draw_memorisation
from .cells import Cell, Key, Result, Settings, results
from .classify import Run, classify
from .frame import Claim, Finding, Study, judged
from .images import StudyData

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


def plan(settings: Settings) -> list[Key]:
    """A cell per arm and seed."""
    return [{"arm": arm, "seed": seed} for arm in ARMS for seed in range(settings["seeds"])]


def work(key: Key, settings: Settings, data: StudyData) -> Result:
    """A long run on few rows; loss and accuracy on the test rows at some epochs on the way, and the training loss there."""
    looks: dict[str, list[float]] = {"test_loss": [], "test_accuracy": [], "training_loss": []}
    seen = set()

    def watch(run: Run) -> None:
        if run.epoch in settings["looks"] and run.epoch not in seen:
            seen.add(run.epoch)
            found, trained = run.score("test"), run.score("train")
            for name, value in (("loss", found["loss"]), ("accuracy", found["accuracy"])):
                looks[f"test_{name}"].append(value)
            looks["training_loss"].append(trained["loss"])

    run = settings["run"] | {"epochs": max(settings["looks"])} | ARMS[key["arm"]] | {"seed": key["seed"]}
    return classify(run, data, watch) | looks


def judge(cells: Sequence[Cell], settings: Settings) -> list[Finding]:
    """Does the control memorise, and is the test loss at the end lower with each regulariser?"""
    last = {arm: [path[-1] for path in results(cells, "test_loss", arm=arm)] for arm in ARMS}
    trained = [path[-1] for path in results(cells, "training_loss", arm=CONTROL)]
    rises = [path[-1] - min(path) for path in results(cells, "test_loss", arm=CONTROL)]
    found = [
        judged("memorises", trained, below=0.05, over="seeds"),
        judged("rises", rises, above=0, over="seeds"),
    ]
    for arm in OTHERS:
        differences = [a - b for a, b in zip(last[arm], last[CONTROL], strict=True)]
        found.append(judged(arm, differences, below=0, over="seeds"))
    return found


_WHERE = "section 3.1, asked further"

STUDY = Study(
    name="memorisation",
    title="small data, long training: which regulariser helps",
    claims=(
        Claim("memorises", _WHERE, "LoRA without dropout learns the rows by heart (training loss at the end)", "not measured",
              by_paper=False),
        Claim("rises", _WHERE, "and its test loss rises again (at the end minus at its best)", "not measured", by_paper=False),
        *(
            Claim(arm, _WHERE, f"{arm}: the test loss at the end is lower than LoRA's without dropout", "not measured",
                  by_paper=False)
            for arm in OTHERS
        ),
    ),
    needs=lambda settings: (settings["run"]["data"],),
    libraries=("transformers", "peft"),
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
    differs=dict.fromkeys(
        ("laptop", "paper"),
        "A question of ours. The same rate for all arms (Adafactor, constant), r and batch as in the settings; the models' own "
        "dropout is off. Weight decay is the optimiser's own, lr times .3 per step.",
    ),
    plan=plan,
    work=work,
    judge=judge,
    draw=draw_memorisation,
)  # fmt: skip
