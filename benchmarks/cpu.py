"""Two things that cost a CPU more than they need: torch's default product in float32, and memory that is given back.

The products are those of SmolLM2's layers, of its adapters and of wider layers, by torch's default and by oneDNN
(`alloralib.ops.matmul`), in turns. Each call takes another weight, so that none waits in a cache, as in a step. What freed
memory costs is seen in fresh processes, in turns, which take training steps of a stack of four layers with glibc's defaults
and with what the `allora` command tells it (`alloralib.training.memory`).

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

from .measuring import Record, alternate, environment, quartiles, ratio, record_of, write

FROZEN = ((576, 576), (1536, 576), (576, 1536), (2048, 2048), (5632, 2048), (2048, 5632), (49152, 576))
"""(n1, n2) of the weight: SmolLM2's layers, those of hidden size 2048, and SmolLM2's vocabulary."""
NARROW = ((48, 576), (32, 1536), (576, 16), (1536, 16))
"""Adapters' factors at rank 16: A of queries, keys and values together, A of gate and up, B."""
COLD = 2**26
"""Bytes of weights between two calls with the same one."""
TOKENS = 512
LIBRARIES = {"default": False, "oneDNN": True}
WAYS = {"given back": "False", "kept": "True"}


def products(rounds: int) -> list[dict[str, Any]]:
    """Seconds of Y = X W^T, of G W and, where W is narrow, of the sum over the tokens G^T X, for every shape, each way."""
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
    """Seconds of training steps in this process, the first of which are not counted."""
    if keep:
        from alloralib.training.memory import keep_freed_memory

        if not keep_freed_memory():
            raise SystemExit("this C library is not told: only glibc is, and no MALLOC_ variable may be set")
    from .arms import build
    from .models import stack

    model, batch = stack(576, 4, 4, TOKENS // 4, "float32")
    return alternate({"allora": build("allora", model, batch, 16).step}, rounds, 3)["allora"]


def memory(processes: int, rounds: int) -> dict[str, list[float]]:
    """Median seconds of a step in each process."""
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
    """The record as Markdown."""
    lines = [f"Float32 products of {TOKENS} tokens, GFLOP/s; {record['machine']['processor']}:", ""]
    lines += ["| weight | forward: default | oneDNN | backward: default | oneDNN | sum over tokens: default | oneDNN |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for found in record["products"]:
        work = 2 * TOKENS * found["n1"] * found["n2"]
        rates = [f"{work / quartiles(seconds)[1] / 1e9:.0f}" for seconds in found["seconds"].values()]
        lines.append(f"| {found['n1']:,} x {found['n2']:,} | {' | '.join([*rates, *[''] * (6 - len(rates))])} |")
    medians = record["memory"]
    lines += [
        "",
        f"A training step of four layers of hidden size 576: {ratio(medians, 'kept', 'given back'):.3f} of the time where "
        f"freed memory is kept (medians of {len(medians['kept'])} processes each, "
        + ", ".join(f"{name}: {min(values) * 1000:.0f} to {max(values) * 1000:.0f} ms" for name, values in medians.items())
        + ").",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--steps", choices=WAYS.values(), help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.steps is not None:
        print("seconds:", *steps_in_a_process(a.steps == "True", a.rounds))
        return
    record = environment() | {"products": products(a.rounds), "memory": memory(a.processes, a.rounds)}
    write(record, record_of("cpu"))
    print(table(record))


if __name__ == "__main__":
    main()
