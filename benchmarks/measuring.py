"""Timing in alternation, memory counters, and the records that the benchmarks write and read."""

from __future__ import annotations

import gc
import itertools
import json
import platform
import random
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import alloralib
from alloralib.files import write_text

Record = dict[str, Any]
ROOT = Path(__file__).parent.parent
RECORDS = Path(__file__).parent / "records"
INSTRUCTIONS = torch.backends.cpu.get_cpu_capability().lower()
"""The best vector instructions of this processor, as torch reports them: avx2, avx512. Names the folder of its records."""
KINDS = {"avx512": "AVX-512", "avx2": "AVX2", "unknown": "CPU not recorded"}
"""Kinds of processors as tables name them. "unknown" holds records that do not say which instructions they ran with."""
PACKAGES = ("torch", "peft", "transformers", "trl", "datasets", "loralib", "litgpt")
MIB = 2**20


def alternate(steps: dict[str, Callable[[], Any]], rounds: int, warmup: int) -> dict[str, list[float]]:
    """Time every step once per round, so that a slow minute of the machine affects all of them.

    The order within a round is random (see `shuffled`). The garbage collector runs between rounds only.

    Args:
        steps: what to time, by name.
        rounds: number of rounds that count.
        warmup: number of rounds before them that do not.

    Returns:
        Seconds of every step in every counted round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    gc.collect()
    gc.disable()
    try:
        for turn, names in enumerate(shuffled(steps, warmup + rounds)):
            for name in names:
                start = time.perf_counter()
                steps[name]()
                taken = time.perf_counter() - start
                if turn >= warmup:
                    seconds[name].append(round(taken, 6))
            gc.collect()
            print(f"  round {turn + 1} of {warmup + rounds}", end="\r", flush=True)
    finally:
        gc.enable()
    print(" " * 40, end="\r")
    return seconds


def shuffled(names: Iterable[str], rounds: int) -> Iterator[list[str]]:
    """The names in a new random order for each round (seed 0).

    With a fixed order, a step would always run behind the same other step, and with the caches and the heap that it leaves.
    """
    order = random.Random(0)
    turn = list(names)
    for _ in range(rounds):
        order.shuffle(turn)
        yield [*turn]


def paired(seconds: dict[str, list[float]], arm: str, other: str) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile of the ratio arm / other, taken within each round."""
    low, middle, high = quartiles([a / b for a, b in zip(seconds[arm], seconds[other], strict=True)])
    return low, middle, high


def spread(ratios: tuple[float, float, float], digits: int = 2) -> str:
    """Median and quartiles as the tables show them.

    >>> spread((0.9, 1.0, 1.25))
    '1.00 (0.90 to 1.25)'
    """
    low, middle, high = (f"{value:.{digits}f}" for value in ratios)
    return f"{middle} ({low} to {high})"


def quartiles(values: list[float]) -> list[float]:
    """Lower quartile, median and upper quartile. A single value is all three."""
    return statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3


def duration(seconds: float) -> str:
    """Seconds or milliseconds, whichever reads better.

    >>> duration(1.234), duration(0.0567)
    ('1.23 s', '57 ms')
    """
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


def kept_bytes(forward: Callable[[], Any], known: Iterable[Tensor]) -> int:
    """Bytes that autograd saves for the backward pass of what `forward` returns.

    Args:
        forward: runs the forward pass and returns its result, which holds the graph.
        known: tensors that exist anyway (parameters, buffers, the batch). Their storages are not counted.
    """
    there = {tensor.untyped_storage().data_ptr() for tensor in known}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in there:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor  # keeps the storage alive, so that no address is used twice while the graph exists

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = forward()
    del result
    return sum(kept.values())


def kept_by(arm: Any) -> int:
    """`kept_bytes` of an arm's forward pass."""
    batch = [value for value in arm.batch.values() if isinstance(value, Tensor)]
    return kept_bytes(arm.loss, [*arm.model.parameters(), *arm.model.buffers(), *batch])


def reset_peak() -> None:
    """Reset the process's peak resident memory (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def resident() -> tuple[int, int]:
    """Resident memory of the process in bytes: now, and the peak since `reset_peak` (Linux)."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    now, peak = (int(lines[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    return now, peak


def environment() -> Record:
    """What every record says about its measurement: command, day, revision, machine and versions."""
    versions = {"python": platform.python_version(), "alloralib": alloralib.__version__}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "command": f"python -m benchmarks.{Path(sys.argv[0]).stem} {shlex.join(_without_directories(sys.argv[1:]))}".strip(),
        "date": time.strftime("%Y-%m-%d"),
        "revision": revision(),
        "machine": {
            "processor": _processor(),
            "instructions": INSTRUCTIONS,
            "threads": torch.get_num_threads(),
        },
        "versions": versions,
    }


def revision() -> str | None:
    """The git commit of the code, with "-dirty" if src/ or benchmarks/ (records aside) differ from it. None without git."""
    code = ["--", "src", "benchmarks", ":!benchmarks/records"]
    try:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, check=True, capture_output=True, text=True)
        changed = subprocess.run(["git", "diff", "--quiet", "HEAD", *code], cwd=ROOT, check=False).returncode
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("-dirty" if changed else "")


def _without_directories(words: list[str]) -> list[str]:
    """The command line without `--...-dir` options: where files are is not part of the measurement."""
    kept: list[str] = []
    for before, word in itertools.pairwise(["", *words]):
        if not word.endswith("-dir") and not before.endswith("-dir"):
            kept.append(word)
    return kept


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def kinds() -> list[str]:
    """The kinds of processors that have records, in the order of `KINDS`."""
    found = sorted(path.name for path in RECORDS.iterdir() if path.is_dir())
    return [*(kind for kind in KINDS if kind in found), *(kind for kind in found if kind not in KINDS)]


def record_of(name: str, kind: str = INSTRUCTIONS) -> Path:
    """The path of a record. Kind "" is for records that do not depend on the processor."""
    return RECORDS / kind / f"{name}.json"


def read(name: str, kind: str = INSTRUCTIONS) -> Record | None:
    """The record of that name, or None if there is none."""
    path = record_of(name, kind)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def read_all(name: str) -> dict[str, Record]:
    """The records of that name by kind of processor, the newest first.

    Records name their day since 0.2. Of the older ones, those that name the processor's instructions are newer.
    """
    found = {kind: record for kind in kinds() if (record := read(name, kind))}
    return dict(sorted(found.items(), key=lambda item: _age(item[1]), reverse=True))


def _age(record: Record) -> tuple[str, bool]:
    return record.get("date", ""), "instructions" in record["machine"]


def is_earlier(record: Record) -> bool:
    """Whether a record was measured with an earlier version of alloralib: another major or minor version than this code's."""
    return record["versions"]["alloralib"].split(".")[:2] != alloralib.__version__.split(".")[:2]


def label(kind: str, record: Record) -> str:
    """A kind of processor as a table names it, with a dagger if the record was measured with an earlier version."""
    return KINDS.get(kind, kind.upper()) + ("†" if is_earlier(record) else "")


def write(record: Record, path: Path) -> None:
    """Write a record atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(record, indent=1) + "\n")
