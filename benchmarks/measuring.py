"""Seconds, taken in turn; bytes, counted and resident; and what machine it was."""

from __future__ import annotations

import gc
import itertools
import json
import platform
import random
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Record = dict[str, Any]
RECORDS = Path(__file__).parent / "records"
INSTRUCTIONS = torch.backends.cpu.get_cpu_capability().lower()
"""What the processor here can do at most, as torch sees it: avx2, avx512. Records of different kinds stand side by side."""
KINDS = {"avx512": "with AVX-512", "avx2": "with AVX2", "unknown": "on an earlier machine"}
"""Kinds of processors as a title names them; "unknown" is one whose instructions its records do not name."""
PACKAGES = ("alloralib", "torch", "peft", "transformers", "trl", "datasets", "loralib", "litgpt")


def alternate(steps: dict[str, Callable[[], Any]], rounds: int, warmup: int) -> dict[str, list[float]]:
    """Seconds of every step in every round.

    The steps take turns within a round, so that a slow minute of the machine hits all of them, in the order of `shuffled`.
    The collector of garbage runs between rounds only.
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
    """The names in another order for each round, so that none is always behind the same other one and what it leaves in
    caches and in the heap."""
    order = random.Random(0)
    turn = list(names)
    for _ in range(rounds):
        order.shuffle(turn)
        yield [*turn]


def ratio(seconds: dict[str, list[float]], arm: str, other: str) -> float:
    """Median of one arm over the median of another."""
    return statistics.median(seconds[arm]) / statistics.median(seconds[other])


def paired(seconds: dict[str, list[float]], arm: str, other: str) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile over the rounds of (arm / other), each ratio within one round."""
    low, middle, high = quartiles([a / b for a, b in zip(seconds[arm], seconds[other], strict=True)])
    return low, middle, high


def quartiles(values: list[float]) -> list[float]:
    """Lower quartile, median, upper quartile; of one value, that value."""
    return statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3


def kept_bytes(forward: Callable[[], Any], known: Iterable[Tensor]) -> int:
    """Bytes that autograd keeps for the backward pass of what `forward` returns.

    Args:
        forward: must return the result, which holds the graph.
        known: tensors that are there anyway (parameters, buffers, the batch); what shares their memory is not counted.
    """
    there = {tensor.untyped_storage().data_ptr() for tensor in known}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in there:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor  # which keeps it alive: no address comes twice while the graph is there

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = forward()
    del result
    return sum(kept.values())


def kept_by(arm: Any) -> int:
    """`kept_bytes` of an arm's forward pass."""
    batch = [value for value in arm.batch.values() if isinstance(value, Tensor)]
    return kept_bytes(arm.loss, [*arm.model.parameters(), *arm.model.buffers(), *batch])


def reset_peak() -> None:
    """Forget the process's highest resident memory so far (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def resident() -> tuple[int, int]:
    """Bytes of the process in memory: now, and at most since `reset_peak` (Linux)."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    now, peak = (int(lines[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    return now, peak


def environment() -> Record:
    """The command, the machine and the versions of a measurement."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "command": f"python -m benchmarks.{Path(sys.argv[0]).stem} {shlex.join(_without_directories(sys.argv[1:]))}".strip(),
        "machine": {
            "processor": _processor(),
            "instructions": INSTRUCTIONS,
            "threads": torch.get_num_threads(),
        },
        "versions": versions,
    }


def _without_directories(words: list[str]) -> list[str]:
    """Where the data are and where the work is done is no part of what is measured."""
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
    """The kinds of processors that there are records of."""
    found = sorted(path.name for path in RECORDS.iterdir() if path.is_dir())
    return [*(kind for kind in KINDS if kind in found), *(kind for kind in found if kind not in KINDS)]


def record_of(name: str, kind: str = INSTRUCTIONS) -> Path:
    """Where the record of that name is for a kind of processor; "" is for what does not depend on it."""
    return RECORDS / kind / f"{name}.json"


def read(name: str, kind: str = INSTRUCTIONS) -> Record | None:
    """The record of that name, if there is one."""
    path = record_of(name, kind)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def write(record: Record, path: Path) -> None:
    """Write a record, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".part")
    scratch.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    scratch.replace(path)
