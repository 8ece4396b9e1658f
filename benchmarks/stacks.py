"""How the cost grows: decoder layers of any width, one factor varied at a time around a center.

Each point is measured as `benchmarks.step` is, on a stack from the middle of a model (no embedding, no output layer, and the
input wants a gradient). The record is written after every point; `--resume` leaves out those that it has.

    python -m benchmarks.stacks
    python -m benchmarks.stacks --seconds 5 --only width        quick look at one series
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
    """One stack: hidden size, layers, rank, tokens in the batch (of 4 rows)."""

    width: int = 1024
    layers: int = 1
    r: int = 16
    tokens: int = 512
    dtype: str = "float32"
    compiled: bool = False


CENTRE = Point()
WIDTHS = (576, 1024, 2048, 4096)
SERIES: dict[str, list[Point]] = {
    "width": [replace(CENTRE, width=value) for value in WIDTHS],
    "layers": [replace(CENTRE, layers=value) for value in (1, 2, 4, 8)],
    "r": [replace(CENTRE, r=value) for value in (4, 8, 16, 32, 64, 128, 256)],
    "tokens": [replace(CENTRE, tokens=value) for value in (128, 256, 512, 1024, 2048, 4096)],
    "bfloat16": [replace(CENTRE, width=value, dtype="bfloat16") for value in WIDTHS],
    "compiled": [replace(CENTRE, compiled=True), replace(CENTRE, compiled=True, dtype="bfloat16")],
}
"""Points by what is varied; the center stands in several and is measured once."""


def measure(point: Point, seconds: float) -> Record:
    """Seconds and kept bytes of every arm at one point, and the floor there.

    Args:
        seconds: about how long to measure, within 7 to 25 rounds.
    """
    import torch

    from .arms import build_all
    from .floor import floor
    from .models import stack

    length = point.tokens // ROWS
    base, batch = stack(point.width, point.layers, ROWS, length, point.dtype)
    arms = build_all(ARMS, base, batch, point.r)
    bound = floor(base, ROWS, length, point.r, inputs_want=True)
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
    """Of one series, or of all; each once."""
    return list(dict.fromkeys(p for name, series in SERIES.items() if only in (None, name) for p in series))


def find(record: Record, point: Point) -> Record | None:
    """The measurement of a point."""
    wanted = asdict(point).items()
    return next((p for p in record["points"] if wanted <= p.items()), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=SERIES, help="one series")
    parser.add_argument("--seconds", type=float, default=20, help="to spend on each point, about")
    parser.add_argument("--resume", action="store_true", help="go on with the record that is there")
    parser.add_argument("--record", default="stacks", help="name of the record to write")
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
        # a process for each: what one point leaves in memory is not there at the next
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            record["points"].append(pool.submit(measure, point, a.seconds).result())
        write(record, record_of(a.record))


if __name__ == "__main__":
    main()
