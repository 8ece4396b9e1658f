"""Table 3: commonsense reasoning with DoRA, ALLoRA+D and ALLoRA, and LoRA as a control.

A run trains on the rows of all tasks together; the answer to a test question is read from the generated text. Of the three eta,
the one with the lowest loss on validation rows is taken for each seed. The best of three on the test questions, which may be
what the paper reports, is judged beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

from alloralib.comparison.statistics import verdict

from ..cells import Cell, Key, Result, Settings, select
from ..commonsense import METHODS, adapted, encode, load_tasks, mean_loss, read_answers, tune
from ..crossed import compare_crossed
from ..data import StudyData
from ..drawing import axes_grid, save
from ..printed import TABLE3
from ..study import Claim, Finding, Judge, Study, by_mean, keys, minus

COLUMNS = {
    "boolq": "BoolQ", "piqa": "PIQA", "social_i_qa": "SIQA", "hellaswag": "HellaSwag", "winogrande": "WinoGrande",
    "arc_easy": "ARC-e", "arc_challenge": "ARC-c", "openbookqa": "OBQA",
}  # fmt: skip
COMMON: Settings = {
    "ranks": [16, 32], "eta2": [1, 2, 4], "seeds": 3, "dropout": 0.05, "cutoff": 256, "dtype": "bfloat16",
}  # fmt: skip
NO_WORSE = -1.0
"""Points that ALLoRA without dropout may lose against ALLoRA+D and still count as no worse."""

Choice = Callable[[Cell], float]


def plan(settings: Settings) -> list[Key]:
    """A cell per run: model, rank, seed, method, and eta squared for the two methods that have it."""
    runs: list[Key] = [{"method": "LoRA"}, {"method": "DoRA"}, *keys(method=("ALLoRA+D", "ALLoRA"), eta2=settings["eta2"])]
    groups = keys(model=settings["models"], r=settings["ranks"], seed=range(settings["seeds"]))
    return [{"model": g["model"], "r": g["r"], **run, "seed": g["seed"]} for g in groups for run in runs]


def work(key: Key, settings: Settings, data: StudyData) -> Result:
    """Train, and answer the test questions. Initial adapter, rows and order depend on the seed alone, for all methods.

    Returns:
        validation_loss, in nats per token of the reference answers; by task the loss, which test questions were answered right
        (correct), how many answers named a choice (named) and which questions the most frequent answer of the training rows
        would get right (frequent); the training loss over the first and the last tenth of the updates; rows and updates.
    """
    tasks = load_tasks(settings, data, key["seed"])
    model, tokenizer = adapted(key, settings)
    batch, cutoff = settings["ask_batch"], settings["cutoff"]
    rows = encode(tokenizer, [q for task in tasks.values() for q in task.train], cutoff)
    losses = tune(model, rows, settings, settings["models"][key["model"]]["learning_rate"], key["seed"])
    tenth = max(1, len(losses) // 10)
    validation = encode(tokenizer, [q for task in tasks.values() for q in task.validation], cutoff)
    result: Result = {
        "validation_loss": mean_loss(model, validation, batch), "loss": {}, "correct": {}, "named": {}, "frequent": {},
        "train_loss": [fmean(losses[:tenth]), fmean(losses[-tenth:])], "rows": len(rows), "updates": len(losses),
    }  # fmt: skip
    said = read_answers(model, tokenizer, [q for task in tasks.values() for q in task.test], settings)
    for name, task in tasks.items():
        own, said = said[: len(task.test)], said[len(task.test) :]
        result["loss"][name] = mean_loss(model, encode(tokenizer, task.test, cutoff), batch)
        result["correct"][name] = [int(a == q.answer) for a, q in zip(own, task.test, strict=True)]
        result["named"][name] = sum(a is not None for a in own)
        result["frequent"][name] = [int(q.choices[q.answer] == task.frequent) for q in task.test]
    return result


def by_validation(cell: Cell) -> float:
    """What eta is chosen by: the loss on validation rows. It does not depend on the test questions."""
    return cell.result["validation_loss"]


def by_test(cell: Cell) -> float:
    """The choice that flatters: minus the accuracy on the test questions themselves."""
    return -accuracy(cell)


def accuracy(cell: Cell, field: str = "correct") -> float:
    """The mean accuracy over the tasks, in percent."""
    return 100 * fmean(fmean(right) for right in cell.result[field].values())


def chosen(cells: Sequence[Cell], choose: Choice | None = None, **wanted: Any) -> Cell:
    """The run of a model, rank, method and seed. Of several eta, the one with the lowest `choose`; the smallest in a tie."""
    return min(select(cells, **wanted), key=choose or by_validation)


def chosen_runs(
    cells: Sequence[Cell], settings: Settings, method: str, choose: Choice | None = None, ranks: Sequence[int] | None = None
) -> list[list[Cell]]:
    """The chosen runs of a method, per seed: one for each model and rank."""
    return [
        [
            chosen(cells, choose, model=m, r=r, method=method, seed=seed)
            for m in settings["models"]
            for r in ranks or settings["ranks"]
        ]
        for seed in range(settings["seeds"])
    ]


def right(
    cells: Sequence[Cell], settings: Settings, method: str, choose: Choice | None = None, ranks: Sequence[int] | None = None,
    field: str = "correct",
) -> Any:  # fmt: skip
    """Which questions were answered right, (seeds, questions), in points: the mean is that over tasks, models and ranks."""
    runs = chosen_runs(cells, settings, method, choose, ranks)
    return np.array([np.mean([weighted(cell.result[field]) for cell in group], axis=0) for group in runs])


def weighted(tasks: dict[str, list[int]]) -> Any:
    """Right and wrong by question, weighted such that the mean is the mean of the tasks' accuracies, whatever their sizes."""
    bits = [np.array(found, dtype=float) for found in tasks.values()]
    total = sum(map(len, bits))
    return np.concatenate([100 * b * total / (len(bits) * len(b)) for b in bits])


def losses(cells: Sequence[Cell], settings: Settings, method: str) -> list[float]:
    """The mean loss over tasks, models and ranks, per seed."""
    groups = chosen_runs(cells, settings, method)
    return [fmean(fmean(cell.result["loss"].values()) for cell in group) for group in groups]


def crossed(a: Callable[..., Any], b: Callable[..., Any], above: float = 0.0) -> Judge:
    """Judge the mean of a - b, which are (cells, settings) -> (seeds, questions): paired over both seeds and questions."""

    def judge(cells: Sequence[Cell], settings: Settings) -> Finding:
        found = compare_crossed(a(cells, settings), b(cells, settings))
        said = verdict(found.low, found.high, above=above)
        rule = f"above {above:.3g} points"
        return Finding(f"{found.mean:+.2f} points", found.low, found.high, f"95 %, {found.method}", rule, said)

    return judge


def better(a: str, b: str, *, above: float = 0.0) -> Judge:
    """Judge the accuracy of one method minus that of another."""
    return crossed(lambda cells, s: right(cells, s, a), lambda cells, s: right(cells, s, b), above)


def flattered(cells: Sequence[Cell], settings: Settings) -> Any:
    """ALLoRA with eta chosen on the test questions."""
    return right(cells, settings, "ALLoRA", by_test)


def gain_at(cells: Sequence[Cell], settings: Settings, rank: int) -> Any:
    """ALLoRA minus DoRA at one rank."""
    return right(cells, settings, "ALLoRA", ranks=[rank]) - right(cells, settings, "DoRA", ranks=[rank])


def lower_loss(than: str) -> Judge:
    """Judge that ALLoRA's loss is lower than another method's."""
    return by_mean(lambda cells, s: minus(losses(cells, s, than), losses(cells, s, "ALLoRA")), unit=" nats", above=0)


def printed(a: str, b: str, rank: int | None = None) -> float:
    """The mean of a - b over the paper's entries, of all ranks or one."""
    rows = [rows for (_, r), rows in TABLE3.items() if rank in (None, r)]
    return round(fmean(x - y for row in rows for x, y in zip(row[a], row[b], strict=True)), 2)


OVER_DORA = printed("ALLoRA", "DoRA")


def draw(cells: Sequence[Cell], settings: Settings, path: Path) -> None:
    """Accuracy and loss, the mean over seeds: rows are model, rank and method, columns tasks, the best of a column in bold."""
    tasks = settings["tasks"]
    head = ["model", "r", "method", *(COLUMNS.get(task, task) for task in tasks), "average", "loss", "best η on test"]
    shown = [*(("correct", method) for method in METHODS), ("frequent", "LoRA")]
    rows: list[list[str]] = []
    bold: list[tuple[int, int]] = []
    for model in settings["models"]:
        for r in settings["ranks"]:
            numbers: list[list[float]] = []
            first = len(rows) + 1  # below the head
            for field, method in shown:

                def runs(choose: Choice, method: str = method, model: str = model, r: int = r) -> list[Cell]:
                    seeds = range(settings["seeds"])
                    return [chosen(cells, choose, model=model, r=r, method=method, seed=seed) for seed in seeds]

                found = runs(by_validation)
                averages = [accuracy(cell, field) for cell in found]
                shares = [100 * fmean(fmean(cell.result[field][task]) for cell in found) for task in tasks]
                numbers.append([*shares, fmean(averages)])
                texts = [f"{share:.1f}" for share in shares]
                texts.append(f"{fmean(averages):.1f} ± {stdev(averages) if len(averages) > 1 else 0:.1f}")
                if field == "frequent":
                    rows.append([model, str(r), "most frequent", *texts, "", ""])
                    continue
                loss = f"{fmean(fmean(cell.result['loss'].values()) for cell in found):.3f}"
                best = f"{fmean(accuracy(cell) for cell in runs(by_test)):.1f}" if method.startswith("ALLoRA") else ""
                rows.append([model, str(r), method, *texts, loss, best])
            for place, column in enumerate(zip(*numbers[: len(METHODS)], strict=True)):
                bold += [(first + i, 3 + place) for i, value in enumerate(column) if value == max(column)]
    figure, axes = axes_grid(1, 1, size=(0.75 * len(head), 0.6 + 0.24 * (len(rows) + 1)))
    ax = axes[0][0]
    ax.axis("off")
    table = ax.table(rows, colLabels=head, loc="center", cellLoc="center")
    table.auto_set_font_size(False)
    table.set_fontsize(8)
    table.auto_set_column_width(list(range(len(head))))
    for (i, _), cell in table.get_celld().items():
        cell.visible_edges = "B" if i % len(shown) == 0 else ""  # a line below the head and each block, as in the paper
        if i and (i - 1) % len(shown) >= len(METHODS) - 1:
            cell.get_text().set_color("0.45")  # the control and the constant answer, which the paper does not have
    for place in bold:
        table[place].get_text().set_weight("bold")
    ax.set_title(
        f"accuracy, %: mean over {settings['seeds']} seeds, ± of the average; η by validation; loss in nats a token",
        fontsize=8,
    )
    save(figure, path)


STUDY = Study(
    name="table3",
    claims=[
        Claim("over-dora", "Table 3", "ALLoRA is more accurate than DoRA on average.", f"{OVER_DORA:+.2f} points",
              better("ALLoRA", "DoRA")),
        Claim("d-over-dora", "Table 3", "So is ALLoRA+D.", f"{printed('ALLoRA+D', 'DoRA'):+.2f} points",
              better("ALLoRA+D", "DoRA")),
        Claim("no-dropout", "Table 3", "ALLoRA without dropout is no worse than with it (ALLoRA - ALLoRA+D).",
              f"{printed('ALLoRA', 'ALLoRA+D'):+.2f} points", better("ALLoRA", "ALLoRA+D", above=NO_WORSE)),
        Claim("rank", "Table 3", "The gain over DoRA is larger at the higher rank (gain there minus gain at the lower).",
              f"{printed('ALLoRA', 'DoRA', 32) - printed('ALLoRA', 'DoRA', 16):+.2f} points",
              crossed(lambda cells, s: gain_at(cells, s, max(s["ranks"])), lambda cells, s: gain_at(cells, s, min(s["ranks"]))),
              by_paper=False),
        Claim("best-on-test", "Table 3", "ALLoRA with the best of three eta on the test questions is more accurate than DoRA.",
              f"{OVER_DORA:+.2f} points", crossed(flattered, lambda cells, s: right(cells, s, "DoRA")), by_paper=False),
        Claim("selection", "Table 3", "Choosing eta on test questions instead of validation rows adds more than the paper's "
              "whole gain.", "not stated",
              crossed(flattered, lambda cells, s: right(cells, s, "ALLoRA"), OVER_DORA), by_paper=False),
        Claim("over-lora", "control", "ALLoRA is more accurate than LoRA with dropout.", "not run", better("ALLoRA", "LoRA"),
              by_paper=False),
        Claim("loss-over-dora", "Table 3", "ALLoRA's loss on the reference answers is lower than DoRA's (DoRA - ALLoRA).",
              "not run", lower_loss("DoRA"), by_paper=False),
        Claim("loss-over-lora", "control", "It is lower than LoRA's (LoRA - ALLoRA).", "not run", lower_loss("LoRA"),
              by_paper=False),
        Claim("chance", "check", "Tuned models do better than always giving the most frequent answer (accuracy, mean of the "
              "methods).", "not stated",
              crossed(lambda cells, s: np.mean([right(cells, s, method) for method in METHODS], axis=0),
                      lambda cells, s: right(cells, s, "ALLoRA", field="frequent")), by_paper=False),
    ],
    settings={
        "laptop": COMMON | {
            "models": {"SmolLM2-135M": {"name": "smollm2-135m", "learning_rate": 1e-3}},
            "tasks": ["boolq", "arc_easy", "arc_challenge", "openbookqa"],
            "train_rows": 16, "validation_share": 0.05, "validation_rows": 3, "test_rows": 12, "epochs": 1, "updates": 8,
            "batch": 8, "schedule": "constant", "warmup": 0, "new_tokens": 8, "ask_batch": 12,
        },
        "paper": COMMON | {
            "models": {
                "LLaMA-7B": {"name": "yahma/llama-7b-hf", "learning_rate": 2e-4},
                "LLaMA2-7B": {"name": "meta-llama/Llama-2-7b-hf", "learning_rate": 2e-4},
                "LLaMA3-8B": {"name": "meta-llama/Meta-Llama-3-8B", "learning_rate": 1e-4},
            },
            "tasks": list(COLUMNS),
            "train_rows": None, "validation_share": 0.01, "validation_rows": 15, "test_rows": None, "epochs": 3,
            "updates": None, "batch": 16, "schedule": "linear", "warmup": 100, "new_tokens": 32, "ask_batch": 32,
        },
    },
    differs={
        "laptop": "SmolLM2-135M-Instruct instead of LLaMA 7B and 8B, 4 of the 8 tasks, and 8 updates of 8 rows (16 rows of "
        "each task, which is what the time allows) instead of 3 epochs of 170,000 rows in batches of 16. There are 12 test "
        "questions per task, so one question is 8 points of a task and 2 points of the average: a gap of .3 points cannot be "
        "seen here, and hardly any claim about accuracy can be confirmed. The loss can show smaller differences. AdamW at a "
        "constant 1e-3 (the paper does not state it; under Adam eta has hardly any effect in the first updates). Alpha is the "
        "rank. Tokens of the prompt are not trained on; rows of similar length share a batch; answers are greedy and have at "
        "most 8 tokens. Eta is chosen for each seed by the loss on 3 validation rows of each task; the paper takes the best of "
        "three and does not say on which data. LoRA is our control. 'No worse' allows 1 point. The 95 % interval of an "
        "accuracy is over seeds and questions, that of a loss over 3 seeds.",
        "paper": "Models, tasks, epochs, batch size, cutoff, ranks and targets are the paper's. Learning rates are those of "
        "DoRA's scripts for LLaMA2 (2e-4, which we assume for LLaMA too) and LLaMA3 (1e-4); 100 steps of warm-up; 3 runs, "
        "since the paper does not say how many. The training set is made of the tasks' own training parts. Alpha is the rank "
        "(in DoRA's scripts it is an argument). Tokens of the prompt are not trained on; answers are greedy, where DoRA's use "
        "4 beams. Eta is chosen by the loss on 15 validation rows of each task (DoRA holds out 120 in all). LoRA is our "
        "control. 'No worse' allows 1 point.",
    },
    plan=plan,
    work=work,
    draw=draw,
    needs=lambda settings: tuple(settings["tasks"]),
    libraries=("transformers", "peft"),
)  # fmt: skip
