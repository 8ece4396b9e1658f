"""Table 3 as a picture: rows are model, rank and method, columns the tasks and their average. From the record alone."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from .study_figures import grid, save

Record = dict[str, Any]
Results = list[dict[str, Any]]

_COLUMNS = {
    "boolq": "BoolQ", "piqa": "PIQA", "social_i_qa": "SIQA", "hellaswag": "HellaSwag", "winogrande": "WinoGrande",
    "arc_easy": "ARC-e", "arc_challenge": "ARC-c", "openbookqa": "OBQA",
}  # fmt: skip
_ROWS = ("DoRA", "ALLoRA+D", "ALLoRA", "LoRA")
_FREQUENT = "most frequent"


def draw_table3(record: Record, path: Path) -> None:
    """Accuracy in per cent and loss, the mean over seeds with the deviation of the average; the best of a column is bold."""
    settings = record["settings"]
    tasks = settings["tasks"]
    head = ["model", "r", "method", *(_COLUMNS.get(task, task) for task in tasks), "average", "loss", "best η on test"]
    rows: list[list[str]] = []
    bold: list[tuple[int, int]] = []
    for model in settings["models"]:
        for r in settings["ranks"]:
            groups = {method: _runs(record, model, r, method, "validation_loss") for method in _ROWS}
            block = [(name, groups[name], "correct") for name in _ROWS] + [(_FREQUENT, groups["LoRA"], "frequent")]
            numbers = [[fmean(_share(run[field][task]) for run in runs) for task in tasks] for _, runs, field in block]
            averages = [[_average(run[field]) for run in runs] for _, runs, field in block]
            numbers = [[*row, fmean(own)] for row, own in zip(numbers, averages, strict=True)]
            first = len(rows) + 1  # below the head
            for place in range(len(tasks) + 1):
                top = max(row[place] for row in numbers[: len(_ROWS)])
                bold += [(first + i, 3 + place) for i in range(len(_ROWS)) if numbers[i][place] == top]
            for (name, runs, field), row, own in zip(block, numbers, averages, strict=True):
                cells = [f"{value:.1f}" for value in row[:-1]] + [f"{row[-1]:.1f} ± {stdev(own) if len(own) > 1 else 0:.1f}"]
                tuned = field == "correct"
                loss = f"{fmean(fmean(run['loss'].values()) for run in runs):.3f}" if tuned else ""
                flattered = _runs(record, model, r, name, "test") if name.startswith("ALLoRA") else []
                best = f"{fmean(_average(run['correct']) for run in flattered):.1f}" if flattered else ""
                rows.append([model, str(r), name, *cells, loss, best])
    figure, axes = grid(1, 1, size=(0.75 * len(head), 0.6 + 0.24 * (len(rows) + 1)))
    ax = axes[0][0]
    ax.axis("off")
    table = ax.table(rows, colLabels=head, loc="center", cellLoc="center")
    table.auto_set_font_size(False)
    table.set_fontsize(8)
    table.auto_set_column_width(list(range(len(head))))
    per_block = len(_ROWS) + 1
    for (i, _), cell in table.get_celld().items():
        cell.visible_edges = "B" if i % per_block == 0 else ""  # a rule below the head and below every block, as printed
        if i and (i - 1) % per_block >= len(_ROWS) - 1:
            cell.get_text().set_color("0.45")  # the control and the constant answer, which the paper has not
    for place in bold:
        table[place].get_text().set_weight("bold")
    ax.set_title(
        f"accuracy, %: mean over {settings['seeds']} seeds, ± of the average; η by validation; loss in nats a token",
        fontsize=8,
    )
    save(figure, path)


def _runs(record: Record, model: str, r: int, method: str, choose: str) -> Results:
    """The chosen run of every seed: lowest validation loss, or best on test."""
    found: Results = []
    for seed in range(record["settings"]["seeds"]):
        wanted = {"model": model, "r": r, "method": method, "seed": seed}
        cells = record["cells"]
        runs: Results = [c["result"] for c in cells if all(c["key"].get(name) == value for name, value in wanted.items())]
        if choose == "test":
            found.append(max(runs, key=lambda run: _average(run["correct"])))
        else:
            found.append(min(runs, key=lambda run: run[choose]))
    return found


def _average(tasks: dict[str, list[int]]) -> float:
    return fmean(_share(right) for right in tasks.values())


def _share(right: list[int]) -> float:
    return 100 * fmean(right)
