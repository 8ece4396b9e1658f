"""Memory of one training step, every arm in a process of its own.

Two figures: the bytes that autograd keeps between the forward and the backward pass, counted tensor by tensor without what is
there anyway (weights, the batch); and the process's resident memory at its highest during the steps, which also holds
gradients, the optimizer's moments, temporaries and what the allocator does not give back.

    python -m benchmarks.memory
    python -m benchmarks.memory --arm peft-lora        one arm, here; prints its numbers as JSON
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
from typing import Any

from .measuring import Record, environment, kept_by, record_of, reset_peak, resident, write

STEPS = 3
MIB = 2**20


def one(name: str, dtype: str, rows: int, length: int, r: int) -> dict[str, int]:
    """Bytes of one arm: kept for the backward pass, resident before the first step, and at most during the steps."""
    from .arms import build
    from .models import smollm2

    model, batch = smollm2(rows, length, dtype)
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data = tensor.data.clone()  # from the file that is mapped into memory, which counts as resident too
    arm = build(name, model, batch, r)
    gc.collect()
    before = resident()[0]
    reset_peak()
    for _ in range(STEPS):
        arm.step()
    peak = resident()[1]
    return {"kept": kept_by(arm), "before": before, "peak": peak}


def measure(dtype: str, rows: int, length: int, r: int) -> Record:
    """`one` for every arm whose package is there."""
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


def table(record: Record) -> str:
    """The record as a Markdown table."""
    from .arms import TITLES

    arms = record["arms"]
    ours = arms["allora"]["kept"]
    lines = ["| arm | kept for the backward | ALLoRA keeps | peak resident | above its start |", "|---|---|---|---|---|"]
    for name, title in TITLES.items():
        if name in arms:
            a = arms[name]
            share = "" if name == "allora" else f"{ours / a['kept']:.2f} of it"
            above = (a["peak"] - a["before"]) / MIB
            lines.append(f"| {title} | {a['kept'] / MIB:.0f} MiB | {share} | {a['peak'] / MIB:.0f} MiB | {above:.0f} MiB |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arm", help="measure this arm in this process and print its numbers")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=128, help="tokens in each row")
    parser.add_argument("--r", type=int, default=16)
    a = parser.parse_args()
    if a.arm:
        print(json.dumps(one(a.arm, a.dtype, a.rows, a.length, a.r)))
        return
    record = measure(a.dtype, a.rows, a.length, a.r)
    write(record, record_of("memory"))
    print(record["what"], table(record), sep="\n\n")


if __name__ == "__main__":
    main()
