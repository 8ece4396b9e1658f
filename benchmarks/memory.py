"""Memory of one training step, with every arm in a process of its own.

Two numbers: the bytes that autograd saves for the backward pass, counted tensor by tensor without weights and batch; and the
process's peak resident memory during the steps, which includes weights, gradients, optimizer state, temporaries and what the
allocator does not give back.

    python -m benchmarks.memory
    python -m benchmarks.memory --arm peft-lora        one arm, in this process; prints its numbers as JSON
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
from typing import Any

from .measuring import MIB, Record, environment, kept_by, record_of, reset_peak, resident, write
from .step import verdict

STEPS = 3
MOST_KEPT = 0.75
"""At most how much of what PEFT LoRA keeps for the backward pass `allora train` should keep."""


def one(name: str, dtype: str, rows: int, length: int, r: int) -> dict[str, int]:
    """Bytes of one arm: kept for the backward pass, resident before the first step, and at the peak of the steps."""
    from .arms import build
    from .models import smollm2

    model, batch = smollm2(rows, length, dtype)
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data = tensor.data.clone()  # out of the memory-mapped file, whose pages count as resident too
    arm = build(name, model, batch, r)
    gc.collect()
    before = resident()[0]
    reset_peak()
    for _ in range(STEPS):
        arm.step()
    peak = resident()[1]
    return {"kept": kept_by(arm), "before": before, "peak": peak}


def measure(dtype: str, rows: int, length: int, r: int) -> Record:
    """`one` for every arm whose package is installed."""
    from .arms import TITLES, missing

    absent = missing()
    arms: dict[str, Any] = {}
    for name in TITLES:
        if name in absent:
            continue
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.memory", "--arm", name, "--dtype", dtype]
        command += ["--rows", str(rows), "--length", str(length), "--r", str(r)]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        arms[name] = json.loads(output.splitlines()[-1])
        print(f"  {name}: {arms[name]}", flush=True)
    what = f"memory of a training step, SmolLM2-135M, {dtype}, {rows} x {length} tokens, r = {r}, all linear layers, AdamW"
    return {"what": what, "steps": STEPS, **environment(), "absent": absent, "arms": arms}


def kept(record: Record, other: str = "peft-lora") -> float:
    """What `allora train` keeps for the backward pass, as a multiple of what another arm keeps."""
    return record["arms"]["allora-train"]["kept"] / record["arms"][other]["kept"]


def target(record: Record | None) -> str:
    """The memory target as a cell of a Markdown table."""
    return "not measured" if record is None else f"{kept(record):.3f} {verdict(kept(record), MOST_KEPT)}"


def table(record: Record) -> str:
    """The record as a Markdown table, without the arms that only switch a fast path off."""
    from .arms import PATHS, TITLES

    arms = record["arms"]
    lines = ["| arm | kept for the backward pass | of PEFT LoRA's | peak resident | peak above its start |", "|---" * 5 + "|"]
    for name, title in TITLES.items():
        if name in arms and name not in PATHS:
            a = arms[name]
            share = a["kept"] / arms["peft-lora"]["kept"]
            above = (a["peak"] - a["before"]) / MIB
            lines.append(f"| {title} | {a['kept'] / MIB:.0f} MiB | {share:.2f} | {a['peak'] / MIB:.0f} MiB | {above:.0f} MiB |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arm", help="measure this arm in this process and print its numbers")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rows", type=int, default=4, help="rows in the batch [%(default)s]")
    parser.add_argument("--length", type=int, default=128, help="tokens in each row [%(default)s]")
    parser.add_argument("--r", type=int, default=16, help="rank [%(default)s]")
    a = parser.parse_args()
    if a.arm:
        print(json.dumps(one(a.arm, a.dtype, a.rows, a.length, a.r)))
        return
    record = measure(a.dtype, a.rows, a.length, a.r)
    write(record, record_of("memory"))
    print(record["what"], table(record), sep="\n\n")


if __name__ == "__main__":
    main()
