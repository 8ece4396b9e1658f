"""How the cost grows: decoder layers of any width, one factor varied at a time around a center.

Each point is measured like `benchmarks.step`, on layers from the middle of a model: no embedding, no output layer, and the
input needs a gradient. The record is written after every point; `--resume` skips the points that it has.

    python -m benchmarks.stacks
    python -m benchmarks.stacks --seconds 5 --only width        a quick look at one series
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from typing import Any

from .measuring import Record, alternate, environment, kept_by, read, record_of, write

ROWS = 4
ARMS = ("frozen", "allora", "allora-default", "peft-lora", "peft-lora-dropout", "peft-dora")
FEWEST, MOST = 7, 25


@dataclass(frozen=True)
class Point:
    """One stack: hidden size, layers, rank, tokens in the batch (of 4 rows), dtype, and whether it is compiled."""

    width: int = 1024
    layers: int = 1
    r: int = 16
    tokens: int = 512
    dtype: str = "float32"
    compiled: bool = False


CENTER = Point()
WIDTHS = (576, 1024, 2048, 4096)
SERIES: dict[str, list[Point]] = {
    "width": [replace(CENTER, width=value) for value in WIDTHS],
    "layers": [replace(CENTER, layers=value) for value in (1, 2, 4, 8)],
    "r": [replace(CENTER, r=value) for value in (4, 8, 16, 32, 64, 128, 256)],
    "tokens": [replace(CENTER, tokens=value) for value in (128, 256, 512, 1024, 2048, 4096)],
    "bfloat16": [replace(CENTER, width=value, dtype="bfloat16") for value in WIDTHS],
    "compiled": [replace(CENTER, compiled=True), replace(CENTER, compiled=True, dtype="bfloat16")],
}
"""Points by what is varied. The center is in several series and is measured once."""


def measure(point: Point, seconds: float) -> Record:
    """Time every arm at one point, and count kept bytes and operations.

    Args:
        point: the stack.
        seconds: approximate time to spend, within 7 to 25 rounds.
    """
    import torch

    from .arms import build_all
    from .flops import count
    from .models import stack

    length = point.tokens // ROWS
    base, batch = stack(point.width, point.layers, ROWS, length, point.dtype)
    arms = build_all(ARMS, base, batch, point.r)
    bound = count(base, ROWS, length, point.r, inputs_want=True)
    del base
    kept = {} if point.compiled else {name: kept_by(arm) for name, arm in arms.items()}
    for arm in arms.values():
        if point.compiled:
            arm.model = torch.compile(arm.model)
        arm.step()  # compiles
    start = time.perf_counter()
    for arm in arms.values():
        arm.step()
    rounds = int(min(max(seconds / (time.perf_counter() - start), FEWEST), MOST))
    taken = alternate({name: arm.step for name, arm in arms.items()}, rounds, warmup=0)
    return asdict(point) | {"floor": bound.record(), "kept": kept, "seconds": taken}


def points(only: str | None) -> list[Point]:
    """The points of one series, or of all; each once."""
    return list(dict.fromkeys(p for name, series in SERIES.items() if only in (None, name) for p in series))


def find(record: Record, point: Point) -> Record | None:
    """The measurement of a point, or None if the record does not have it."""
    wanted = asdict(point).items()
    return next((p for p in record["points"] if wanted <= p.items()), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=SERIES, help="measure one series only")
    parser.add_argument("--seconds", type=float, default=20, help="approximate time for each point [%(default)s]")
    parser.add_argument("--resume", action="store_true", help="add the points that the existing record does not have")
    parser.add_argument("--record", default="stacks", help="name of the record to write [%(default)s]")
    a = parser.parse_args()
    started: Any = read(a.record) if a.resume else None
    record: Record = started or {
        "what": f"training step of decoder layers, {ROWS} rows, all linear layers, AdamW",
        **environment(),
        "points": [],
    }
    for point in points(a.only):
        if find(record, point):
            continue
        print(point, flush=True)
        # a process for each point: what one leaves in memory does not affect the next
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            record["points"].append(pool.submit(measure, point, a.seconds).result())
        write(record, record_of(a.record))


if __name__ == "__main__":
    main()
