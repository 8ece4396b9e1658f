"""Table 1: accuracy by rank at eta = 1, LoRA, DoRA and ALLoRA."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..cells import Cell, Key, Result, Settings, values
from ..classify import LIBRARIES, classify, data_sets
from ..data import StudyData
from ..drawing import average, axes_grid, deviation, draw_table, plus_minus, save
from ..perception import PERCEPTION, everywhere, knobs
from ..printed import TABLE1, TABLE1_RANKS
from ..study import Claim, Study, by_mean, keys, minus

METHODS = ("LoRA", "DoRA", "ALLoRA")


def work(key: Key, settings: Settings, data: StudyData) -> Result:
    """One run at eta = 1."""
    run = settings["run"]
    return classify(run | knobs(key["method"], 1, run["learning_rate"]) | {"r": key["rank"], "seed": key["seed"]}, data)


def by_seed(cells: Sequence[Cell], method: str, ranks: Sequence[int]) -> list[float]:
    """The mean accuracy over these ranks, per seed."""
    by_rank = [values(cells, "accuracy", method=method, rank=rank) for rank in ranks]
    return [sum(found) / len(found) for found in zip(*by_rank, strict=True)]


def ahead(cells: Sequence[Cell], other: str, ranks: Sequence[int]) -> list[float]:
    """ALLoRA minus another method, the mean over these ranks, per seed."""
    return minus(*(by_seed(cells, method, ranks) for method in ("ALLoRA", other)))


def rise(cells: Sequence[Cell], settings: Settings) -> list[float]:
    """ALLoRA at the highest rank minus at the lowest, per seed."""
    return minus(*(by_seed(cells, "ALLoRA", [choose(settings["ranks"])]) for choose in (max, min)))


def claims(other: str) -> list[Claim]:
    """ALLoRA against another method."""
    printed = minus(TABLE1["ALLoRA"], TABLE1[other])
    return [
        Claim(
            f"mean-{other}", "Table 1", f"ALLoRA is more accurate than {other} in the mean over the ranks.",
            f"{sum(printed) / len(printed):+.2f} points",
            by_mean(lambda cells, s: ahead(cells, other, s["ranks"]), unit=" points", above=0),
        ),
        Claim(
            f"every-{other}", "Table 1", f"ALLoRA is more accurate than {other} at every rank.",
            f"{sum(gap > 0 for gap in printed)} wins of {len(TABLE1_RANKS)}",
            lambda cells, s: everywhere({rank: ahead(cells, other, [rank]) for rank in s["ranks"]}),
        ),
    ]  # fmt: skip


def draw(cells: Sequence[Cell], settings: Settings, path: Path) -> None:
    """Accuracy by rank with its standard deviation, a line per method; the table below."""
    ranks = settings["ranks"]
    figure, axes = axes_grid(2, 1, size=(6, 2.4), height_ratios=[2.2, 1])
    ax, table = axes[0][0], axes[1][0]
    found = {method: [values(cells, "accuracy", method=method, rank=rank) for rank in ranks] for method in METHODS}
    for number, (method, groups) in enumerate(found.items()):
        means, deviations = map(average, groups), map(deviation, groups)
        ax.errorbar(ranks, list(means), list(deviations), fmt="o-", ms=3, lw=1.3, capsize=2, color=f"C{number}", label=method)
    ax.set_xscale("log", base=2)
    ax.set_xlabel("rank", fontsize=8)
    ax.set_ylabel("accuracy, %", fontsize=8)
    ax.legend(frameon=False, fontsize=7)
    rows = [[method, *map(plus_minus, groups)] for method, groups in found.items()]
    draw_table(table, ["", *(f"r = {rank}" for rank in ranks)], rows)
    save(figure, path)


STUDY = Study(
    name="table1",
    claims=[
        *claims("LoRA"),
        *claims("DoRA"),
        Claim("rises", "Table 1", "ALLoRA's accuracy rises with the rank (r = 64 minus r = 4).",
              f"{TABLE1['ALLoRA'][-1] - TABLE1['ALLoRA'][0]:+.2f} points", by_mean(rise, unit=" points", above=0)),
    ],
    settings={
        scale: {
            "ranks": list(TABLE1_RANKS), "seeds": 5,
            "run": {k: v for k, v in PERCEPTION[scale]["run"].items() if k != "r"} | PERCEPTION[scale]["columns"][column],
        }
        for scale, column in (("laptop", "MiniLM emotion"), ("paper", "Qwen2 emotion"))
    },
    differs={
        "laptop": "MiniLM-L6 on 128 rows of Emotion instead of Qwen2-0.5B on all of it, 5 runs. The rest is as in Table 6 "
        "here: Adafactor, l_b = 3e-3, batch size 8, 2 epochs, all linear layers, 300 test rows, the model's own dropout off.",
        "paper": "Model, data, epochs and runs are the paper's. Optimizer, schedule and batch size are those of the authors' "
        "public code. The paper does not state the target layers. At most 512 tokens.",
    },
    plan=lambda s: keys(rank=s["ranks"], method=METHODS, seed=range(s["seeds"])),
    work=work,
    draw=draw,
    needs=data_sets,
    libraries=LIBRARIES,
)  # fmt: skip
