"""A training step of two revisions of this repository, in alternation: what a change costs or saves.

Each revision runs in its own process, from an export of its files, and waits between its steps. A round is one step of each, in
random order, so that a slow minute of the machine affects both.

    python -m benchmarks.versions --before 57b90bc --after HEAD
    python -m benchmarks.versions --before 57b90bc --after HEAD --cases smollm2 --pairs 5 --record scratch
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .measuring import MIB, ROOT, Record, environment, paired, quartiles, record_of, spread, write

WARMUP = 2


@dataclass(frozen=True)
class Case:
    """A step that both revisions can run: a name of `benchmarks.models.MODELS` and one of `benchmarks.arms.TITLES`."""

    title: str
    model: str
    arm: str
    rows: int
    length: int


CASES = {
    "smollm2": Case("SmolLM2-135M as `allora train`, 4 x 128 tokens", "smollm2", "allora-train", 4, 128),
    "minilm": Case("MiniLM-L6, 77 classes, 16 x 64 tokens", "minilm", "allora", 16, 64),
}

# Runs inside the export of a revision. Every line of standard input is a request; every answer is a line of JSON.
WORKER = """
import gc, json, sys, time
import torch
from benchmarks.arms import build_all
from benchmarks.measuring import kept_by, reset_peak, resident
from benchmarks.models import MODELS

model, arm, rows, length = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
base, batch = MODELS[model](rows, length, "float32")
step = build_all([arm], base, batch, 16)[arm]
del base
for line in sys.stdin:
    if line.strip() == "memory":
        gc.collect()
        reset_peak()
        step.step()
        print(json.dumps({"kept": kept_by(step), "peak": resident()[1]}), flush=True)
        continue
    start = time.perf_counter()
    step.step()
    taken = time.perf_counter() - start
    gc.collect()
    print(json.dumps(round(taken, 6)), flush=True)
"""


class Worker:
    """The process that runs the steps of one revision."""

    def __init__(self, tree: Path, case: Case) -> None:
        environ = os.environ | {"PYTHONPATH": f"{tree / 'src'}{os.pathsep}{tree}", "HF_HUB_OFFLINE": "1"}
        words = [case.model, case.arm, str(case.rows), str(case.length)]
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", WORKER, *words], cwd=tree, env=environ, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def ask(self, what: str) -> Any:
        """Request `step` (returns seconds) or `memory` (returns bytes kept for the backward pass, and peak resident bytes)."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(what, file=self._process.stdin, flush=True)
        while line := self._process.stdout.readline():
            try:
                return json.loads(line)
            except ValueError:  # output of a library
                continue
        raise RuntimeError(f"the process of the revision ended with exit code {self._process.wait()}")

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


def export(revision: str, directory: Path) -> Path:
    """Write the files of a revision into a folder of the directory. Returns the folder."""
    tree = directory / revision.replace("/", "-")
    tree.mkdir()
    archive = subprocess.run(["git", "archive", revision], cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
    subprocess.run(["tar", "-x", "-C", str(tree)], input=archive, check=True)
    return tree


def measure(before: str, after: str, names: list[str], pairs: int) -> Record:
    """Time the steps of both revisions and measure the memory of one step."""
    cases: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        trees = {"before": export(before, Path(scratch)), "after": export(after, Path(scratch))}
        for name in names:
            case = CASES[name]
            workers = {which: Worker(tree, case) for which, tree in trees.items()}
            try:
                cases[name] = {"what": case.title, **_alternate(workers, pairs)}
            finally:
                for worker in workers.values():
                    worker.close()
            print(name, summary(cases[name]), flush=True)
    return {
        "what": "a training step of two revisions, r = 16, all linear layers, float32, AdamW",
        "before": _commit(before), "after": _commit(after), "pairs": pairs, **environment(), "cases": cases,
    }  # fmt: skip


def _alternate(workers: dict[str, Worker], pairs: int) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {which: [] for which in workers}
    order, shuffler = list(workers), random.Random(0)
    for turn in range(WARMUP + pairs):
        shuffler.shuffle(order)
        for which in order:
            taken = workers[which].ask("step")
            if turn >= WARMUP:
                seconds[which].append(taken)
    return {"seconds": seconds, "memory": {which: worker.ask("memory") for which, worker in workers.items()}}


def _commit(revision: str) -> str:
    words = ["git", "rev-parse", "--short", revision]
    return subprocess.run(words, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def summary(case: Record) -> str:
    """One case in a line."""
    ratios = spread(paired(case["seconds"], "after", "before"), 3)
    kept = {which: memory["kept"] / MIB for which, memory in case["memory"].items()}
    return f"after / before {ratios}; kept {kept['before']:.0f} and {kept['after']:.0f} MiB"


def table(record: Record) -> str:
    """The record as a Markdown table."""
    lines = [
        f"Revision `{record['after']}` against `{record['before']}`, {record['pairs']} pairs of steps.", "",
        "| step | before | after | after / before | kept for the backward pass, before | after |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for case in record["cases"].values():
        before, after = (quartiles(case["seconds"][which])[1] for which in ("before", "after"))
        ratios = spread(paired(case["seconds"], "after", "before"), 3)
        kept = [f"{case['memory'][which]['kept'] / MIB:.0f} MiB" for which in ("before", "after")]
        times = f"{before * 1000:.0f} ms | {after * 1000:.0f} ms | {ratios}"
        lines.append(f"| {case['what']} | {times} | {kept[0]} | {kept[1]} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", required=True, help="git revision")
    parser.add_argument("--after", default="HEAD", help="git revision [%(default)s]")
    parser.add_argument("--cases", nargs="*", choices=CASES, default=list(CASES), help="steps to compare [all]")
    parser.add_argument("--pairs", type=int, default=30, help="steps of each revision [%(default)s]")
    parser.add_argument("--record", default="versions", help="name of the record to write [%(default)s]")
    a = parser.parse_args()
    record = measure(a.before, a.after, a.cases, a.pairs)
    write(record, record_of(a.record))
    print(table(record))


if __name__ == "__main__":
    main()
