"""One training step on a real model, every arm in turn, in one process.

A round is, for each arm, one forward pass, one backward pass and one optimizer step on the same batch. The frozen model,
forward and backward to its inputs, is the limit: whatever is trained through it costs at least that.

    python -m benchmarks.step                                      SmolLM2-135M, float32, 4 x 128 tokens
    python -m benchmarks.step --dtype bfloat16 --rows 1 --length 16 --record step_bf16    few tokens, for any processor
    python -m benchmarks.step --model minilm --rows 16 --length 64 --record minilm
    python -m benchmarks.step --arms peft-lora --record scratch    a quick look: the limit, ALLoRA and one more
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from .measuring import Record, alternate, environment, quartiles, ratio, record_of, write

NAMES = {"smollm2": "SmolLM2-135M", "minilm": "MiniLM-L6, 77 classes"}
README = (
    "frozen", "allora", "allora-chunked", "allora-train", "allora-default", "peft-lora", "peft-lora-dropout", "peft-dora",
    "loralib", "litgpt", "full",
)  # fmt: skip


def measure(
    model: str, dtype: str, rows: int, length: int, r: int, rounds: int, warmup: int, only: tuple[str, ...] = ()
) -> Record:
    """Seconds of every arm (or the limit, ALLoRA and `only` some) in every round, of the rule alone, and the floor."""
    from .arms import CHUNKED, TITLES, build_all, missing
    from .floor import floor
    from .models import MODELS

    base, batch = MODELS[model](rows, length, dtype)
    absent = missing()
    names = [name for name in TITLES if name not in absent and (model == "smollm2" or name not in CHUNKED)]
    if only:
        names = [name for name in names if name in ("frozen", "allora", *only)]
    arms = build_all(names, base, batch, r)
    bound = floor(base, rows, length, r, inputs_want=False)
    del base
    steps: dict[str, Callable[[], Any]] = {}
    for name, arm in arms.items():
        steps[name] = arm.step
        if name == "allora":
            steps["rule"] = rule(arm.model)
    seconds = alternate(steps, rounds, warmup)
    what = f"training step, {NAMES[model]}, {dtype}, {rows} x {length} tokens, r = {r}, all linear layers, AdamW"
    return {
        "what": what,
        "rounds": rounds,
        **environment(),
        "absent": absent,
        "floor": bound.record(),
        "rule_seconds": seconds.pop("rule"),
        "seconds": seconds,
    }


def rule(model: Any) -> Callable[[], None]:
    """What ALLoRA adds to LoRA in one step, alone: row norms, scale, and the two products with it, for every layer.

    Without gradients, as within a backward pass.
    """
    import torch

    from alloralib.adapters.layers import Linear
    from alloralib.ops.scale import row_scale

    pairs = [m.adapter_parameters("default") for m in model.modules() if isinstance(m, Linear)]
    grads = {B.shape: torch.zeros_like(B) for _, B in pairs}  # one for all of a shape: fresh from a product, it is in the cache

    @torch.no_grad()
    def run() -> None:
        for A, B in pairs:
            s = row_scale(A, B, 2.0)
            _ = s * B  # what A's gradient is made with
            grads[B.shape].mul_(s)  # the gradient of B

    return run


def rule_share(record: Record) -> float:
    """The rule's median over the median of ALLoRA's step."""
    return ratio({"rule": record["rule_seconds"], **record["seconds"]}, "rule", "allora")


def table(record: Record, only: tuple[str, ...] = ()) -> str:
    """The record as a Markdown table, of all arms or of some."""
    from .arms import TITLES

    seconds = record["seconds"]
    lines = ["| step of | median | quartiles | times the limit | ALLoRA takes |", "|---|---|---|---|---|"]
    for name, title in TITLES.items():
        if name not in seconds or (only and name not in only):
            continue
        low, middle, high = (_seconds(value) for value in quartiles(seconds[name]))
        share = "" if name == "allora" else f"{ratio(seconds, 'allora', name):.2f} of it"
        limit = ratio(seconds, name, "frozen")
        lines.append(f"| {title} | {middle} | {low} to {high} | {limit:.2f} | {share} |")
    return "\n".join(lines)


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.0f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=NAMES, default="smollm2")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=128, help="tokens in each row")
    parser.add_argument("--r", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--record", default="step", help="name of the record to write")
    parser.add_argument("--arms", nargs="*", default=(), help="beside the limit and ALLoRA; default all")
    a = parser.parse_args()
    record = measure(a.model, a.dtype, a.rows, a.length, a.r, a.rounds, a.warmup, tuple(a.arms))
    write(record, record_of(a.record))
    print(record["what"], table(record), f"the rule alone: {rule_share(record):.2%} of ALLoRA's step", sep="\n\n")


if __name__ == "__main__":
    main()
