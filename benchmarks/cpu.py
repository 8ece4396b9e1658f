"""Two optimizations for CPUs: float32 matrix products by oneDNN, and freed memory that stays with the process.

Products: those of SmolLM2's layers, of its adapters and of wider layers, by torch's default and by oneDNN
(`alloralib.ops.matmul`), in alternation. Each call uses another weight, so that none is in a cache, as in a training step.

Memory: training steps of four layers in fresh processes, in alternation, with glibc's defaults and with the settings of the
`allora` command (`alloralib.training.memory`).

    python -m benchmarks.cpu
"""

from __future__ import annotations

import argparse
import functools
import itertools
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from .measuring import Record, alternate, environment, record_of, spread, write

FROZEN = ((576, 576), (1536, 576), (576, 1536), (2048, 2048), (5632, 2048), (2048, 5632), (49152, 576))
"""Shapes (n1, n2) of frozen weights: SmolLM2's layers, layers of hidden size 2048, and SmolLM2's output layer."""
NARROW = ((16, 576), (16, 1536), (32, 1536), (576, 16), (1536, 16))
"""Shapes of adapter factors at rank 16: A, the two uses of B side by side, and B."""
COLD = 2**26
"""Bytes of other weights between two calls with the same weight."""
TOKENS = 512
LIBRARIES = {"default": False, "oneDNN": True}
WAYS = {"given back": "False", "kept": "True"}


def products(rounds: int) -> list[dict[str, Any]]:
    """Seconds of X W^T (forward), of G W (backward) and, for narrow W, of the sum over the tokens G^T X, by each library."""
    import torch

    from alloralib.ops.fast_paths import fast_paths
    from alloralib.ops.matmul import inner, linear
    from alloralib.training.memory import keep_freed_memory

    def by(wanted: bool, take: Callable[[], Any]) -> None:
        with fast_paths(onednn=wanted):
            take()

    keep_freed_memory()
    found: list[dict[str, Any]] = []
    for n1, n2 in FROZEN + NARROW:
        x, grad = torch.randn(TOKENS, n2), torch.randn(TOKENS, n1)
        weights = itertools.cycle([torch.randn(n1, n2) for _ in range(-(-COLD // (4 * n1 * n2)))])
        takes: dict[str, Callable[[], Any]] = {
            "forward": lambda x=x, weights=weights: linear(x, next(weights)),
            "backward": lambda grad=grad, weights=weights: linear(grad, next(weights).mT),
        }
        if (n1, n2) in NARROW:
            takes["sum"] = lambda grad=grad, x=x: inner(grad, x)
        steps = {
            f"{what}, {way}": functools.partial(by, wanted, take)
            for what, take in takes.items()
            for way, wanted in LIBRARIES.items()
        }
        found.append({"n1": n1, "n2": n2, "seconds": alternate(steps, rounds, 2)})
    return found


def steps_in_a_process(keep: bool, rounds: int) -> list[float]:
    """Seconds of training steps in this process, after three that do not count."""
    if keep:
        from alloralib.training.memory import keep_freed_memory

        if not keep_freed_memory():
            raise SystemExit("cannot set malloc options: needs Linux with glibc and no MALLOC_... variable in the environment")
    from .arms import build
    from .models import stack

    model, batch = stack(576, 4, 4, TOKENS // 4, "float32")
    return alternate({"allora": build("allora", model, batch, 16).step}, rounds, 3)["allora"]


def memory(processes: int, rounds: int) -> dict[str, list[float]]:
    """Median seconds of a step in each process, by setting."""
    medians: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(processes):
        for name, keep in WAYS.items():
            done = subprocess.run(
                [sys.executable, "-W", "ignore", "-m", "benchmarks.cpu", "--steps", keep, "--rounds", str(rounds)],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            seconds = [float(word) for word in done.stdout.split("seconds:")[1].split()]
            medians[name].append(statistics.median(seconds))
    return medians


def table(record: Record) -> str:
    """The products of a record as a Markdown table, in GFLOP/s: by torch's default, then by oneDNN."""
    lines = ["| weight | forward: default | oneDNN | backward: default | oneDNN | sum over tokens: default | oneDNN |"]
    lines += ["|---" * 7 + "|"]
    for found in record["products"]:
        work = 2 * TOKENS * found["n1"] * found["n2"]
        rates = [f"{work / statistics.median(seconds) / 1e9:.0f}" for seconds in found["seconds"].values()]
        lines.append(f"| {found['n1']:,} x {found['n2']:,} | {' | '.join([*rates, *[''] * (6 - len(rates))])} |")
    return "\n".join(lines)


def gain(record: Record) -> tuple[float, float, float]:
    """Step time with freed memory kept over that with it given back: smallest, of the medians, and largest over processes."""
    kept, given = record["memory"]["kept"], record["memory"]["given back"]
    return min(kept) / max(given), statistics.median(kept) / statistics.median(given), max(kept) / min(given)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25, help="rounds that count [%(default)s]")
    parser.add_argument("--processes", type=int, default=3, help="processes for each setting of malloc [%(default)s]")
    parser.add_argument("--steps", choices=WAYS.values(), help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.steps is not None:
        print("seconds:", *steps_in_a_process(a.steps == "True", a.rounds))
        return
    record = environment() | {"products": products(a.rounds), "memory": memory(a.processes, a.rounds)}
    write(record, record_of("cpu"))
    print(table(record), f"step with freed memory kept, of one with it given back: {spread(gain(record), 3)}", sep="\n\n")


if __name__ == "__main__":
    main()
