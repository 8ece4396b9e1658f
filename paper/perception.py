"""What the text-classification tables share: methods by the paper's names, columns of model and data set, paired differences.

Tables 6 and 7 and the control without dropout are the same runs with different methods; Tables 2 and 4 are differences between
them. All methods of one seed share initial values, rows, their order and the schedule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alloralib.comparison.statistics import compare, holm

from .cells import Cell, Key, Result, Settings, values
from .classify import classify
from .data import StudyData
from .drawing import average, plus_minus, save_table
from .study import Finding, Judge, Values, by_mean, keys, minus

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
"""The paper's name of each method -> settings of a run. The dropout rate is the paper's: .05 where a method has dropout."""

AT_ETA_TIMES_THE_RATE = ("LoRA", "LoRA without dropout", "DoRA")
"""Methods without an eta. They are run at eta times the learning rate l_b."""

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
"""Scale -> settings. `columns` holds a model, a data set and the settings of their runs; `run` holds those of all runs."""

DIFFERS = {
    "laptop": "MiniLM-L6 (fp32) and SmolLM2-135M (bf16) instead of models of 450 to 500 million parameters; 64 to 256 training "
    "rows and 150 to 300 test rows; 2 epochs and 5 runs as in the paper. Adafactor, cosine schedule, clipping and alpha = r as "
    "in the authors' public code; batch size 8; all linear layers; l_b = 3e-3 (MiniLM) and 1e-3 (SmolLM2), chosen after a look "
    "at LoRA alone (at 1e-3 MiniLM had learned nothing in that time) and before any other method was run. The models' own "
    "dropout is off. LoRA at eta l_b also trains the new head at eta l_b, ALLoRA trains it at l_b.",
    "paper": "Models, data, epochs, runs and l_b are the paper's, except that SmolLM2-360M replaces OpenELM-450M, whose code "
    "is not in transformers. Optimizer, schedule and batch size are those of the authors' public code. The paper does not "
    "state the rank (here 32, from Table 1) and the target layers (here all linear layers). At most 512 tokens; the models' "
    "own dropout is off.",
}


def plan(settings: Settings, methods: Sequence[str]) -> list[Key]:
    """A cell per column, method, eta squared and seed. LoRA x eta at eta = 1 is LoRA and is not run again."""
    every = keys(column=settings["columns"], method=methods, eta2=ETA2, seed=range(settings["seeds"]))
    return [key for key in every if (key["method"], key["eta2"]) != ("LoRA x eta", 1)]


def work(key: Key, settings: Settings, data: StudyData) -> Result:
    """One run."""
    run = settings["run"] | settings["columns"][key["column"]]
    return classify(run | knobs(key["method"], key["eta2"], run["learning_rate"]) | {"seed": key["seed"]}, data)


def knobs(method: str, eta2: float, base_rate: float) -> Settings:
    """The settings of a method at an eta squared: its eta, or for a method without one eta times the learning rate."""
    eta = math.sqrt(eta2)
    if method in AT_ETA_TIMES_THE_RATE:
        return METHODS[method] | {"learning_rate": eta * base_rate}
    return METHODS[method] | {"eta": eta}


Gaps = dict[tuple[str, int], list[float]]
"""(column, eta squared) -> a difference per seed."""


def by_seed(cells: Sequence[Cell], method: str, column: str, eta2: int, entry: str = "accuracy") -> list[float]:
    """One entry of the results of a method, per seed."""
    if (method, eta2) == ("LoRA x eta", 1):
        method = "LoRA"
    return values(cells, entry, column=column, method=method, eta2=eta2)


def gaps(cells: Sequence[Cell], settings: Settings, a: str, b: str, *, entry: str = "accuracy") -> Gaps:
    """a - b for each cell of the table."""
    return {
        (column, eta2): minus(*(by_seed(cells, method, column, eta2, entry) for method in (a, b)))
        for column in settings["columns"]
        for eta2 in ETA2
    }


def mean_gaps(a: str, b: str, *, eta2: int | None = None, entry: str = "accuracy") -> Values:
    """(cells, settings) -> the mean of a - b over the table, or over the cells of one eta squared, per seed."""

    def found(cells: Sequence[Cell], settings: Settings) -> list[float]:
        every = gaps(cells, settings, a, b, entry=entry)
        chosen = [differences for (_, e), differences in every.items() if eta2 in (None, e)]
        return [math.fsum(column) / len(column) for column in zip(*chosen, strict=True)]

    return found


def better_on_average(a: str, b: str, *, eta2: int | None = None) -> Judge:
    """Judge that a - b is above 0 in the mean over the table, or over the cells of one eta squared."""
    return by_mean(mean_gaps(a, b, eta2=eta2), unit=" points", above=0)


def lower_loss(a: str, b: str) -> Judge:
    """Judge that a has the lower cross-entropy in the mean over the table."""
    return by_mean(mean_gaps(a, b, entry="loss"), below=0)


def better_everywhere(a: str, b: str) -> Judge:
    """Judge that a - b is above 0 in every cell of the table."""
    return lambda cells, settings: everywhere(gaps(cells, settings, a, b))


def everywhere(found: dict[Any, list[float]]) -> Finding:
    """Judge that every cell's mean is above 0, by a paired t-test per cell with Holm's correction.

    Confirmed if every cell is significantly better, not confirmed if at least one is significantly worse, at a family-wise
    error rate of 5 %.
    """
    tested = [compare(differences, [0.0] * len(differences)) for differences in found.values()]
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
    return Finding(ours, min(means), max(means), "range over cells; t-tests over seeds, Holm", "every cell above 0", said)


def draw_accuracies(cells: Sequence[Cell], settings: Settings, path: Path) -> None:
    """Tables 6 and 7: a row per eta squared and method, a column per model and data set, the best of each eta in bold."""
    columns = list(settings["columns"])
    methods = list(dict.fromkeys(cell.key["method"] for cell in cells))
    rows, bold = [], set()
    for eta2 in ETA2:
        found = {(m, c): by_seed(cells, m, c, eta2) for m in methods for c in columns}
        rows += [[f"{eta2:g}", method, *(plus_minus(found[method, c]) for c in columns)] for method in methods]
        for place, c in enumerate(columns):
            best = max(range(len(methods)), key=lambda m: average(found[methods[m], c]))
            bold.add((len(rows) - len(methods) + best, place + 2))
    save_table(["η²", "method", *columns], rows, path, bold=bold)


def draw_gaps(cells: Sequence[Cell], settings: Settings, path: Path, pairs: Sequence[tuple[str, str]]) -> None:
    """Tables 2 and 4: differences between pairs of methods, green where the first is better, red where it is worse."""
    columns = list(settings["columns"])
    rows, colors = [], {}
    for a, b in pairs:
        found = gaps(cells, settings, a, b)
        for eta2 in ETA2:
            row = [f"{a} - {b}", f"{eta2:g}"]
            for column in columns:
                colors[len(rows), len(row)] = _shade(average(found[column, eta2]))
                row.append(plus_minus(found[column, eta2], signed=True))
            rows.append(row)
    save_table(["gap, points", "η²", *columns], rows, path, colors=colors)


def _shade(gap: float) -> Any:
    """White at 0, full color at 5 points."""
    from matplotlib import colormaps

    return colormaps["RdYlGn"](0.5 + 0.08 * max(-5.0, min(5.0, gap)))
