"""Run the configurations of this directory on real data, and write docs/results.md from their records.

    python examples/results.py run --data-dir DIR [NAME ...]    train, and keep the records in examples/records
    python examples/results.py page                             write docs/results.md from the records

A run is a configuration of this directory; its record is what `allora train` left beside the adapter.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from alloralib.records import RunRecord
from alloralib.reporting.baselines import answers

HERE = Path(__file__).parent
RECORDS = HERE / "records"
PAGE = HERE.parent / "docs" / "results.md"
NAMES = ("tweets", "banking77", "sms_spam", "trec", "rotten_tomatoes", "arc_easy", "e2e_nlg")


def run(names: list[str], data_dir: Path | None) -> None:
    """Train each, and keep its record."""
    RECORDS.mkdir(exist_ok=True)
    for name in names:
        output = HERE.parent / "runs" / name
        settings = ["--config", str(HERE / f"{name}.yaml"), "--output-dir", str(output), "--overwrite"]
        if name != "tweets":  # a bundled set is where its package is
            settings += ["--data-dir", str(data_dir)]
        done = subprocess.run([sys.executable, "-m", "alloralib.cli", "train", *settings])
        if done.returncode:
            sys.exit(done.returncode)
        keep(name, output)


def keep(name: str, output: Path) -> None:
    """Copy the record and the loss curve of a finished run, without local paths."""
    record = RunRecord.read(output / "record.json")
    config = {key: value for key, value in record.config.items() if key not in ("data_dir", "output_dir")}
    command = f"allora train --config examples/{name}.yaml" + ("" if name == "tweets" else " --data-dir DIR")
    data = {part: _placeless(content) for part, content in record.data.items()}
    changed = {"config": config, "command": command, "data": data, "rule": record.rule[-1:]}
    RunRecord(**{**vars(record), **changed}).write(RECORDS / f"{name}.json")
    shutil.copy(output / "loss.png", RECORDS / f"{name}.png")


def _placeless(part: object) -> object:
    """A part of the data without the directory it was read from."""
    if isinstance(part, dict) and "source" in part:
        return part | {"source": ", ".join("/".join(Path(p).parts[-2:]) for p in str(part["source"]).split(", "))}
    return part


def page() -> str:
    """The page, from the records that are there."""
    records = {name: RunRecord.read(path) for name in NAMES if (path := RECORDS / f"{name}.json").is_file()}
    lines = [
        "# Real runs",
        "",
        "Base and tuned model on real data, each number from a record in `examples/records`. One run and one seed each: it",
        "shows what ALLoRA does on a task, not whether another method would do better. Minutes are training time on two",
        "cores that were shared with other work. The settings are in `examples`, one YAML file per set. To repeat a run:",
        "`python examples/results.py run --data-dir DIR NAME`; to rewrite this page: `python examples/results.py page`.",
        "",
        "| set | model | rows: train / validation / test | score | majority or chance | base | tuned | steps | minutes |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, record in records.items():
        data, before, after = record.data, record.metrics["before"], record.metrics["after"]
        rows = " / ".join(f"{data[part]['rows']:,}" if part in data else "-" for part in ("train", "validation", "test"))
        score, floor = (
            ("accuracy", answers(record).get("majority", {"accuracy": before.get("chance")})["accuracy"])
            if "accuracy" in after
            else ("loss per token", None)
        )
        lines.append(
            f"| {name} | {record.model['name']} | {rows} | {score} | {'-' if floor is None else f'{floor:.3f}'} "
            f"| {_score(before)} | {_score(after)} | {len(record.history):,} | {record.seconds['train'] / 60:.0f} |"
        )
    lines += [
        "",
        "Accuracy with its 95 % Wilson interval; loss per token in nats with its 95 % interval over rows. A classifier's base",
        "is the frozen model with a new, untrained head. Multiple choice is scored by likelihood among the choices. Training",
        "rows that occur twice, or also in a later part, were removed (counts below).",
        *_without_gain(records),
        "",
        "| set | rows removed | weights of step | padding | peak memory, GiB |",
        "|---|---|---|---|---|",
    ]
    for name, record in records.items():
        removed = ", ".join(f"{count} {pair}" for pair, count in record.data["removed"].items() if count) or "none"
        best = record.validation["best_step"]
        found = record.preflight
        lines.append(
            f"| {name} | {removed} | {'last' if best is None else best} | {found['data']['padding_share']:.1%} "
            f"| {found['cost']['peak_gib']:.1f} |"
        )
    lines += ["", *(f"![{name}](../examples/records/{name}.png)" for name in records)]
    return "\n".join(lines) + "\n"


def _without_gain(records: dict[str, RunRecord]) -> list[str]:
    """A sentence on the sets where the intervals of base and tuned model overlap."""
    names = [
        name
        for name, record in records.items()
        if record.metrics["after"].get("accuracy_low", 1) <= record.metrics["before"].get("accuracy_high", 0)
    ]
    return [] if not names else ["", f"**No gain is shown on {', '.join(names)}**: the intervals of base and tuned overlap."]


def _score(metrics: dict[str, float]) -> str:
    if "accuracy" in metrics:
        return f"{metrics['accuracy']:.3f} ({metrics['accuracy_low']:.3f} to {metrics['accuracy_high']:.3f})"
    return f"{metrics['loss']:.3f} ({metrics['loss_low']:.3f} to {metrics['loss_high']:.3f})"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    running = verbs.add_parser("run")
    running.add_argument("--data-dir", type=Path, help="where the registered sets are; for all but tweets")
    running.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(NAMES)}; all of them by default")
    verbs.add_parser("page")
    arguments = parser.parse_args()
    if arguments.verb == "run":
        run(arguments.names or list(NAMES), arguments.data_dir)
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
