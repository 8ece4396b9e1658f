"""Table 1: accuracy by rank at eta = 1, LoRA, DoRA and ALLoRA."""

from __future__ import annotations

from collections.abc import Sequence

from ..reporting.study_tables import draw_table1
from .cells import Cell, Key, Result, Settings, select
from .classify import classify
from .frame import Claim, Finding, Study, judged
from .images import StudyData
from .paper_numbers import TABLE1, TABLE1_RANKS
from .perception import PERCEPTION, judged_everywhere, knobs

METHODS = ("LoRA", "DoRA", "ALLoRA")


def plan(settings: Settings) -> list[Key]:
    """A cell per rank, method and seed."""
    return [
        {"rank": rank, "method": method, "seed": seed}
        for rank in settings["ranks"]
        for method in METHODS
        for seed in range(settings["seeds"])
    ]


def work(key: Key, settings: Settings, data: StudyData) -> Result:
    """One run at eta = 1."""
    run = settings["run"]
    return classify(run | knobs(key["method"], 1, run["learning_rate"]) | {"r": key["rank"], "seed": key["seed"]}, data)


def judge(cells: Sequence[Cell], settings: Settings) -> list[Finding]:
    """ALLoRA against both, over all ranks and at every rank; and every method at the highest rank against the lowest."""
    low, high = min(settings["ranks"]), max(settings["ranks"])
    rises = [a - b for a, b in zip(*(_by_seed(cells, settings, "ALLoRA", [rank]) for rank in (high, low)), strict=True)]
    found = []
    for other in METHODS[:2]:
        pairs = zip(*(_by_seed(cells, settings, m, settings["ranks"]) for m in ("ALLoRA", other)), strict=True)
        found.append(judged(f"mean-{other}", [a - b for a, b in pairs], unit=" points", above=0, over="seeds"))
        by_rank = {
            rank: [a - b for a, b in zip(*(_by_seed(cells, settings, m, [rank]) for m in ("ALLoRA", other)), strict=True)]
            for rank in settings["ranks"]
        }
        found.append(judged_everywhere(f"every-{other}", by_rank))
    return [*found, judged("rises", rises, unit=" points", above=0, over="seeds")]


def _by_seed(cells: Sequence[Cell], settings: Settings, method: str, ranks: Sequence[int]) -> list[float]:
    """The mean accuracy over these ranks, per seed."""
    by_rank = [[c.result["accuracy"] for c in select(cells, method=method, rank=rank)] for rank in ranks]
    return [sum(values) / len(values) for values in zip(*by_rank, strict=True)]


def _mean(other: str) -> str:
    gaps = [a - b for a, b in zip(TABLE1["ALLoRA"], TABLE1[other], strict=True)]
    return f"{sum(gaps) / len(gaps):+.2f} points"


def _wins(other: str) -> str:
    return f"{sum(a > b for a, b in zip(TABLE1['ALLoRA'], TABLE1[other], strict=True))} wins of {len(TABLE1_RANKS)}"


STUDY = Study(
    name="table1",
    title="accuracy by rank: LoRA, DoRA, ALLoRA",
    claims=(
        *(
            claim
            for other in METHODS[:2]
            for claim in (
                Claim(f"mean-{other}", "Table 1", f"ALLoRA is better than {other}, mean over the ranks", _mean(other)),
                Claim(f"every-{other}", "Table 1", f"it is better than {other} at every rank", _wins(other)),
            )
        ),
        Claim("rises", "Table 1", "accuracy rises with the rank (ALLoRA, r = 64 minus r = 4)",
              f"{TABLE1['ALLoRA'][-1] - TABLE1['ALLoRA'][0]:+.2f} points"),
    ),
    needs=lambda settings: (settings["run"]["data"],),
    libraries=("transformers", "peft"),
    settings={
        scale: {
            "ranks": list(TABLE1_RANKS), "seeds": 5,
            "run": {k: v for k, v in PERCEPTION[scale]["run"].items() if k != "r"} | PERCEPTION[scale]["columns"][column],
        }
        for scale, column in (("laptop", "MiniLM emotion"), ("paper", "Qwen2 emotion"))
    },
    differs={
        "laptop": "MiniLM-L6 on 128 rows of Emotion instead of Qwen2-0.5B on all of it, 5 runs; the rest as in Table 6 here: "
        "Adafactor, l_b = 3e-3, batch 8, 2 epochs, all linear layers, 300 test rows, the model's own dropout off.",
        "paper": "Model, data, epochs and runs are the paper's; optimiser, schedule and batch are those of its lab's harness; "
        "targets are not stated; 512 tokens.",
    },
    plan=plan,
    work=work,
    judge=judge,
    draw=draw_table1,
)  # fmt: skip
