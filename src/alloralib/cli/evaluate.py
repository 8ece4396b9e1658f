"""`allora evaluate`: the base and the tuned model on the same rows."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.forms import PARTS
from .arguments import RUN_FLAGS, add_run, check_least, check_run
from .quiet import quiet

if TYPE_CHECKING:
    from .asking import Answers

HELP = "score the base and the tuned model on the same rows"
DESCRIPTION = """\
Score the base and the tuned model on the same rows, with intervals and the paired difference.

  allora evaluate runs/tweets                            the run's own test rows
  allora evaluate runs/tweets --data reviews.csv         all rows of a file
  allora evaluate runs/chat --generate --items items.jsonl
  allora evaluate runs/chat --lm-eval hellaswag,arc_easy

An adapter without a record takes --data, and --task and --model where it does not name them itself."""

_COLUMNS = sorted({part for parts in PARTS.values() for part in parts})


def flags() -> list[str]:
    """All flags, for the nearest name to a misspelt one."""
    columns = ["--" + part.replace("_", "-") + "-column" for part in _COLUMNS]
    return ["--data", "--split", "--rows", "--generate", "--items", "--lm-eval", "--batch-size", "--json", *columns, *RUN_FLAGS]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    add_run(parser)
    parser.add_argument(
        "--data", metavar="DATA", help="a file, all of whose rows are asked, or a registered set [the run's own]"
    )
    parser.add_argument("--split", metavar="PART", help="train, validation or test, of a set or the run's own data [test]")
    parser.add_argument("--rows", metavar="N", type=int, help="only the first N rows")
    parser.add_argument("--generate", action="store_true", help="also let the models answer freely, and score what they say")
    parser.add_argument("--items", metavar="FILE", help="write both models' answer to every row (.jsonl)")
    parser.add_argument("--lm-eval", metavar="TASKS", help="tasks of lm-evaluation-harness, by name or .yaml file, with commas")
    parser.add_argument("--batch-size", metavar="N", type=int, default=16, help="rows at a time [16]")
    parser.add_argument("--json", action="store_true", help="print the result as JSON on standard output")
    group = parser.add_argument_group("columns of --data")
    for part in _COLUMNS:
        group.add_argument("--" + part.replace("_", "-") + "-column", metavar="COLUMN", help="[the run's own]")


def run(arguments: argparse.Namespace) -> int:
    """Evaluate, and say what came of it."""
    from ..errors import ConfigError

    check_run(arguments)
    check_least(arguments, rows=1, batch_size=1)
    items = None if arguments.items is None else Path(arguments.items)
    if items is not None and not items.parent.is_dir():
        raise ConfigError("no such directory", where=str(items.parent), remedy="make it first, or give another --items")
    quiet()
    from ..data.forms import LANGUAGE
    from ..data.registry import REGISTRY
    from .asking import ask_both, compare
    from .runs import columns_of, named_by, open_run, read_rows

    if arguments.split is not None and arguments.data is not None and arguments.data not in REGISTRY:
        raise ConfigError("--split is for a registered set or the run's own data", remedy="leave it out: all rows are asked")
    opened = open_run(arguments)
    tasks = [] if arguments.lm_eval is None else [t.strip() for t in arguments.lm_eval.split(",") if t.strip()]
    if (tasks or arguments.generate) and opened.kind not in LANGUAGE:
        raise ConfigError(f"a model for {opened.kind} generates nothing", remedy="leave --generate and --lm-eval out")
    if tasks:
        from ..evaluation.harness import check_harness

        check_harness(tasks)
    given = {part: value for part in _COLUMNS if (value := getattr(arguments, f"{part}_column")) is not None}
    result: dict[str, Any] = {"run": arguments.run, "task": opened.kind}
    answers: Answers | None = None
    model: Any = None
    if arguments.data is not None or opened.config is not None or not tasks:
        rows = read_rows(opened, arguments.data, arguments.split or "test", given)
        columns = columns_of(opened, given, arguments.data)
        if arguments.rows is not None:
            rows = rows.take(list(range(min(arguments.rows, len(rows)))))
        if opened.config is None and opened.labels is not None:
            opened = named_by(opened, rows, columns)
        model = opened.load()
        answers = ask_both(opened, model, rows, columns, generate=arguments.generate, batch_size=arguments.batch_size)
        result |= {"data": rows.source, "rows": len(rows), "base": answers.base.metrics, "tuned": answers.tuned.metrics}
        result["paired"] = compare(answers)
    if tasks:
        from ..evaluation.harness import run_harness

        model = model or opened.load()
        with model.disable_adapter():
            base = run_harness(model, opened.processor, tasks, batch_size=arguments.batch_size)
        result["lm_eval"] = {
            "base": base, "tuned": run_harness(model, opened.processor, tasks, batch_size=arguments.batch_size)
        }  # fmt: skip
    if items is not None and answers is not None:
        write_items(answers, items)
    print(json.dumps(_finite(result)) if arguments.json else summary(result))
    return 0


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    return None if (isinstance(value, float) and value in (float("inf"), float("-inf"))) or value != value else value


def write_items(answers: Answers, path: Path) -> None:
    """One JSON object per row: its number, and what each model answered."""
    lines = [
        json.dumps({"row": row, "base": answers.base_items[row], "tuned": answers.tuned_items[row]}, ensure_ascii=False)
        for row in sorted(answers.base_items)
    ]
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    partial.replace(path)


def summary(result: dict[str, Any]) -> str:
    """A few lines for a person."""
    lines: list[str] = []
    if "base" in result:
        lines.append(f"{result['task']} on {result['rows']:,} rows of {result['data']}")
        lines.append(f"{'':<22}{'base':>24}{'tuned':>26}")
        for name in result["base"]:
            if not name.endswith(("_low", "_high")) and name != "tokens":
                cells = [_cell(result[which], name) for which in ("base", "tuned")]
                lines.append(f"{name.replace('_', ' '):<22}{cells[0]:>24}{cells[1]:>26}")
        lines.append(_paired(result["paired"]))
    for task in result.get("lm_eval", {}).get("base", {}):
        lines.append(f"lm-eval {task}")
        before, after = (result["lm_eval"][which][task] for which in ("base", "tuned"))
        for name in before:
            if not name.endswith("_stderr"):
                error = [f" ± {side[name + '_stderr']:.4f}" if name + "_stderr" in side else "" for side in (before, after)]
                lines.append(f"  {name:<20}{before[name]:>16.4f}{error[0]:<9}{after[name]:>17.4f}{error[1]}")
    return "\n".join(lines)


def _cell(metrics: dict[str, float], name: str) -> str:
    value = f"{metrics[name]:.4f}"
    if name + "_low" in metrics:
        value += f" [{metrics[name + '_low']:.3f}, {metrics[name + '_high']:.3f}]"
    return value


def _paired(paired: dict[str, float]) -> str:
    p = f"p = {paired['p_value']:.2g}"
    if "lower" in paired:
        return f"loss lower on {paired['lower']:,} rows, higher on {paired['higher']:,} (sign test, {p})"
    return (
        f"right only when tuned: {paired['only_after']:,} rows; only before: {paired['only_before']:,}; "
        f"both: {paired['both_right']:,}; neither: {paired['both_wrong']:,} (McNemar, exact: {p})"
    )
