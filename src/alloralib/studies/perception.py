"""The perception tables' common ground: methods by the paper's names, columns of model and data set, runs, and paired gaps.

Tables 6 and 7 and the control without dropout are the same runs with other methods; Tables 2 and 4 are differences of them.
All methods of one seed share initial values, rows, their order and the schedule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..comparison.statistics import compare, holm
from .cells import Cell, Key, Result, Settings, results
from .classify import classify
from .frame import Finding, judged
from .images import StudyData

ETA2 = (1, 2, 4)
METHODS: dict[str, Settings] = {
    "LoRA": {"method": "lora"},
    "LoRA without dropout": {"method": "lora", "dropout": 0.0},
    "DoRA": {"method": "dora"},
    "ALLoRA": {"method": "allora"},
    "ALLoRA+D": {"method": "allora-d"},
    "ALLoRA-OD": {"method": "allora-od"},
    "ASF-LoRA": {"method": "asf-lora"},
    "LoRA x eta": {"method": "lora-x-eta"},
}
"""As the paper names them -> a run's method; rates of dropout are the paper's, .05 where a method has it."""

AT_ETA_TIMES_THE_RATE = ("LoRA", "LoRA without dropout", "DoRA")
"""Methods without an eta: they learn at eta times the learning rate l_b."""

PERCEPTION: dict[str, Settings] = {
    "laptop": {
        "columns": {
            "MiniLM emotion": {
                "model": "minilm-l6", "data": "emotion", "learning_rate": 3e-3, "train_rows": 128, "test_rows": 300,
            },
            "MiniLM rotten": {
                "model": "minilm-l6", "data": "rotten_tomatoes", "learning_rate": 3e-3, "train_rows": 128, "test_rows": 300,
            },
            "MiniLM banking77": {
                "model": "minilm-l6", "data": "banking77", "learning_rate": 3e-3, "train_rows": 256, "test_rows": 300,
            },
            "SmolLM2 trec": {
                "model": "smollm2-135m", "data": "trec", "learning_rate": 1e-3, "train_rows": 64, "test_rows": 150,
                "dtype": "bfloat16",
            },
        },
        "run": {"r": 16, "batch_size": 8, "epochs": 2, "max_length": 48},
        "seeds": 5,
    },
    "paper": {
        "columns": {
            f"{name} {short}": {"model": model, "data": data}
            for name, model, sets in (
                ("Qwen2", "Qwen/Qwen2-0.5B", ("bios", "emotion", "rotten")),
                ("Snowflake", "Snowflake/snowflake-arctic-embed-l", ("emotion", "rotten", "yelp")),
                ("SmolLM2-360M", "HuggingFaceTB/SmolLM2-360M", ("emotion", "rotten", "yelp")),
            )
            for short, data in (
                ("bios", "bias_in_bios"), ("emotion", "emotion"), ("rotten", "rotten_tomatoes"), ("yelp", "yelp_review_full"),
            )
            if short in sets
        },
        "run": {"r": 32, "learning_rate": 1e-4, "batch_size": 64, "epochs": 2, "max_length": 512},
        "seeds": 5,
    },
}  # fmt: skip
"""Settings by scale. `columns`: a model and a set each, and what its runs have for themselves; `run`: of all runs."""

DIFFERS = {
    "laptop": "MiniLM-L6 (fp32) and SmolLM2-135M (bf16) instead of models of 450 to 500 million parameters; 64 to 256 rows to "
    "train on, 150 to 300 to test on; 2 epochs and 5 runs as in the paper. Adafactor, cosine, clipping and alpha = r as in its "
    "lab's harness; batch 8; all linear layers; l_b = 3e-3 (MiniLM) and 1e-3 (SmolLM2), set after a look at LoRA alone (at "
    "1e-3 MiniLM had learnt nothing by then) and before any other method was run. The models' own dropout is off. LoRA at eta "
    "l_b trains the new head at eta l_b too, ALLoRA at l_b.",
    "paper": "Models, data, epochs, runs and l_b are the paper's; SmolLM2-360M stands in for OpenELM-450M, whose code is not "
    "in transformers. Optimiser, schedule and batch are those of its lab's harness; rank (32, from Table 1) and targets (all "
    "linear layers) are not stated; 512 tokens; the models' own dropout is off.",
}


def needs(settings: Settings) -> tuple[str, ...]:
    """The sets of the columns, each once."""
    return tuple(dict.fromkeys(column["data"] for column in settings["columns"].values()))


def plan(settings: Settings, methods: Sequence[str]) -> list[Key]:
    """A cell per column, method, eta squared and seed; LoRA x eta at eta = 1 is LoRA and is not run again."""
    return [
        {"column": column, "method": method, "eta2": eta2, "seed": seed}
        for column in settings["columns"]
        for method in methods
        for eta2 in ETA2
        if not (method == "LoRA x eta" and eta2 == 1)
        for seed in range(settings["seeds"])
    ]


def work(key: Key, settings: Settings, data: StudyData) -> Result:
    """One run."""
    run = settings["run"] | settings["columns"][key["column"]]
    return classify(run | knobs(key["method"], key["eta2"], run["learning_rate"]) | {"seed": key["seed"]}, data)


def knobs(method: str, eta2: float, base_rate: float) -> Settings:
    """A method at an eta squared: its eta, or eta times the rate where it has none."""
    eta = math.sqrt(eta2)
    if method in AT_ETA_TIMES_THE_RATE:
        return METHODS[method] | {"learning_rate": eta * base_rate}
    return METHODS[method] | {"eta": eta}


def gaps(
    cells: Sequence[Cell], settings: Settings, a: str, b: str, *, of: str = "accuracy"
) -> dict[tuple[str, int], list[float]]:
    """a - b by column and eta squared: a difference per seed."""
    return {
        (column, eta2): [x - y for x, y in zip(*(_by_seed(cells, column, m, eta2, of) for m in (a, b)), strict=True)]
        for column in settings["columns"]
        for eta2 in ETA2
    }


def _by_seed(cells: Sequence[Cell], column: str, method: str, eta2: int, of: str) -> list[float]:
    if method == "LoRA x eta" and eta2 == 1:
        method = "LoRA"
    return results(cells, of, column=column, method=method, eta2=eta2)


def mean_gaps(found: dict[tuple[str, int], list[float]], eta2: int | None = None) -> list[float]:
    """The mean over the cells of a table (or those of one eta squared), per seed."""
    chosen = [by_seed for (_, e), by_seed in found.items() if eta2 in (None, e)]
    return [math.fsum(values) / len(values) for values in zip(*chosen, strict=True)]


def judged_mean(claim: str, found: dict[tuple[str, int], list[float]], eta2: int | None = None) -> Finding:
    """The finding of a gap's mean over a table's cells being above 0."""
    return judged(claim, mean_gaps(found, eta2), unit=" points", above=0, over="seeds")


def judged_everywhere(claim: str, found: dict[Any, list[float]]) -> Finding:
    """The finding of a gap being above 0 in every cell of a table: each cell's paired t-test, corrected after Holm.

    Confirmed where every cell is better, not confirmed where at least one is worse, at a family-wise 5 %.
    """
    tested = [compare(values, [0.0] * len(values)) for values in found.values()]
    adjusted = holm([t.p for t in tested])
    better = sum(p < 0.05 and t.mean > 0 for p, t in zip(adjusted, tested, strict=True))
    worse = sum(p < 0.05 and t.mean < 0 for p, t in zip(adjusted, tested, strict=True))
    means = [t.mean for t in tested]
    wins, ties = sum(m > 0 for m in means), sum(m == 0 for m in means)
    said = "not confirmed" if worse else "confirmed" if better == len(tested) else "inconclusive"
    ours = (
        f"{wins} wins, {ties} ties, {len(means) - wins - ties} losses of {len(means)}; "
        f"beyond chance: {better} better, {worse} worse"
    )
    return Finding(
        claim, ours, min(means), max(means), "range over cells; t-tests over seeds, Holm", "every cell above 0", said
    )
