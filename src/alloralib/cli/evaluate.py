"""`allora evaluate`: the scores of the base model and of the tuned model on the same rows."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.forms import PARTS, flag
from .arguments import add_json, add_run, check_minimum, open_chosen

if TYPE_CHECKING:
    from ..training.opened import PairedEvaluation

HELP = "score the base and the tuned model on the same rows"
DESCRIPTION = """\
Score the base and the tuned model on the same rows, with confidence intervals and a paired test.

  allora evaluate runs/tweets                            the test rows of the run
  allora evaluate runs/tweets --data reviews.csv         all rows of a file
  allora evaluate runs/chat --generate --items items.jsonl
  allora evaluate runs/chat --lm-eval hellaswag,arc_easy

An adapter without a record needs --data, and --task and --model if its adapter_config.json does not name them."""

_PARTS = sorted({part for parts in PARTS.values() for part in parts})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    add_run(parser)
    parser.add_argument("--data", metavar="DATA", help="a file (all rows are used), or a registered set [the run's data]")
    parser.add_argument("--split", metavar="PART", help="train, validation or test, of a set or of the run's data [test]")
    parser.add_argument("--rows", metavar="N", type=int, help="use only the first N rows")
    parser.add_argument("--generate", action="store_true", help="also generate answers, and score them by exact match")
    parser.add_argument("--items", metavar="FILE", help="write the answers of both models to every row (.jsonl)")
    parser.add_argument("--lm-eval", metavar="TASKS", help="tasks of lm-evaluation-harness (names, .yaml files), with commas")
    parser.add_argument("--batch-size", metavar="N", type=int, default=16, help="rows per forward pass [16]")
    add_json(parser)
    group = parser.add_argument_group("columns of --data")
    for part in _PARTS:
        group.add_argument(flag(part), metavar="COLUMN", help="[the run's]")


def run(arguments: argparse.Namespace) -> int:
    """Evaluate, and print the scores."""
    from ..errors import ConfigError
    from ..files import finite

    check_minimum(arguments, rows=1, batch_size=1)
    items = None if arguments.items is None else Path(arguments.items)
    if items is not None and not items.parent.is_dir():
        raise ConfigError("no such directory", where=str(items.parent), remedy="create it first, or give another --items")
    opened = open_chosen(arguments)
    tasks = [name.strip() for name in (arguments.lm_eval or "").split(",") if name.strip()]
    if tasks:
        from ..evaluation.harness import check_harness

        opened.require_language_model()
        check_harness(tasks)
    result: dict[str, Any] = {"run": arguments.run, "task": opened.task}
    if arguments.data is not None or opened.config is not None or not tasks:
        columns = {part: name for part in _PARTS if (name := getattr(arguments, f"{part}_column")) is not None}
        found = opened.evaluate(
            arguments.data, split=arguments.split, columns=columns, rows=arguments.rows, batch_size=arguments.batch_size,
            generate=arguments.generate,
        )  # fmt: skip
        result |= {"data": found.source, "rows": len(found.base.items), "base": found.base.metrics}
        result |= {"tuned": found.tuned.metrics, "paired": found.paired}
        if items is not None:
            _write_items(found, items)
    if tasks:
        from ..evaluation.harness import run_harness

        with opened.model.disable_adapter():
            base = run_harness(opened.model, opened.processor, tasks, batch_size=arguments.batch_size)
        tuned = run_harness(opened.model, opened.processor, tasks, batch_size=arguments.batch_size)
        result["lm_eval"] = {"base": base, "tuned": tuned}
    print(json.dumps(finite(result)) if arguments.json else summary(result))
    return 0


def _write_items(found: PairedEvaluation, path: Path) -> None:
    """Write one JSON object per row: its number, and the answers of both models."""
    from ..files import write_text

    pairs = zip(found.base.items, found.tuned.items, strict=True)
    lines = [json.dumps({"row": base["row"], "base": base, "tuned": tuned}, ensure_ascii=False) for base, tuned in pairs]
    write_text(path, "".join(line + "\n" for line in lines))


def summary(result: dict[str, Any]) -> str:
    """The result as a table."""
    lines: list[str] = []
    if "base" in result:
        lines.append(f"{result['task']} on {result['rows']:,} rows of {result['data']}")
        lines.append(f"{'':<22}{'base':>24}{'tuned':>26}")
        for name in result["base"]:
            if not name.endswith(("_low", "_high")) and name != "tokens":
                base, tuned = (_with_interval(result[which], name) for which in ("base", "tuned"))
                lines.append(f"{name.replace('_', ' '):<22}{base:>24}{tuned:>26}")
        lines.append(_paired(result["paired"]))
    for task, before in result.get("lm_eval", {}).get("base", {}).items():
        lines.append(f"lm-eval {task}")
        after = result["lm_eval"]["tuned"][task]
        for name in before:
            if not name.endswith("_stderr"):
                error = [f" ± {side[name + '_stderr']:.4f}" if name + "_stderr" in side else "" for side in (before, after)]
                lines.append(f"  {name:<20}{before[name]:>16.4f}{error[0]:<9}{after[name]:>17.4f}{error[1]}")
    return "\n".join(lines)


def _with_interval(metrics: dict[str, float], name: str) -> str:
    interval = f" [{metrics[name + '_low']:.3f}, {metrics[name + '_high']:.3f}]" if name + "_low" in metrics else ""
    return f"{metrics[name]:.4f}{interval}"


def _paired(paired: dict[str, float]) -> str:
    p = f"p = {paired['p_value']:.2g}"
    if "lower" in paired:
        return f"loss lower on {paired['lower']:,} rows, higher on {paired['higher']:,} (sign test, {p})"
    return (
        f"right only when tuned: {paired['only_after']:,} rows; only before: {paired['only_before']:,}; "
        f"both: {paired['both_right']:,}; neither: {paired['both_wrong']:,} (McNemar, exact: {p})"
    )
