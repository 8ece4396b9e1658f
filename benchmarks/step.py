"""One training step on a real model: every arm in one process, in alternation.

A round runs every arm once: one forward pass, one backward pass and one optimizer step on the same batch. The frozen model,
forward and backward to its inputs, is the lower bound.

    python -m benchmarks.step                                      SmolLM2-135M, float32, 4 x 128 tokens, all arms
    python -m benchmarks.step --dtype bfloat16 --rows 1 --length 16 --record step_bf16
    python -m benchmarks.step --model minilm --rows 16 --length 64 --record minilm

The five arms of the targets, in one run:

    python -m benchmarks.step --rounds 20 --arms frozen allora-train peft-lora peft-lora-dropout peft-dora
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

from .measuring import Record, alternate, duration, environment, paired, record_of, spread, write

NAMES = {"smollm2": "SmolLM2-135M", "minilm": "MiniLM-L6, 77 classes"}
TARGETS = {
    "frozen": ("the frozen model", 1.08),
    "peft-lora": ("PEFT LoRA", 0.95),
    "peft-lora-dropout": ("PEFT LoRA with dropout .05", 0.75),
    "peft-dora": ("PEFT DoRA", 0.70),
}
"""What a step of `allora train` is compared with, and at most how much of that time it should take."""


def chosen(model: str, absent: dict[str, str], only: tuple[str, ...]) -> list[str]:
    """The arms to run, in the order of `TITLES`: `only` those asked for and the frozen model, or all that can run here."""
    from .arms import CHUNKED, TITLES

    unknown = [name for name in only if name not in TITLES]
    if unknown:
        raise SystemExit(f"unknown arms: {', '.join(unknown)}; known: {', '.join(TITLES)}")
    names = [name for name in TITLES if name not in absent and (model == "smollm2" or name not in CHUNKED)]
    return [name for name in names if not only or name in ("frozen", *only)]


def measure(
    model: str, dtype: str, rows: int, length: int, r: int, rounds: int, warmup: int, only: tuple[str, ...] = ()
) -> Record:
    """Time the arms, and the ALLoRA rule alone if there is an arm of ALLoRA."""
    from .arms import ALLORA, build_all, missing
    from .flops import count
    from .models import MODELS

    absent = missing()
    names = chosen(model, absent, only)
    base, batch = MODELS[model](rows, length, dtype)
    arms = build_all(names, base, batch, r)
    bound = count(base, rows, length, r, inputs_want=False)
    del base
    steps: dict[str, Callable[[], Any]] = {name: arm.step for name, arm in arms.items()}
    if found := [name for name in ALLORA if name in arms]:
        steps["rule"] = rule(arms[found[0]].model)
    seconds = alternate(steps, rounds, warmup)
    what = f"training step, {NAMES[model]}, {dtype}, {rows} x {length} tokens, r = {r}, all linear layers, AdamW"
    return {
        "what": what,
        "rounds": rounds,
        **environment(),
        "absent": absent,
        "floor": bound.record(),
        "rule_seconds": seconds.pop("rule", []),
        "seconds": seconds,
    }


def rule(model: Any) -> Callable[[], None]:
    """What ALLoRA adds to LoRA in a step: row norms, scale, and the two products with the scale, for every layer.

    Runs without gradients, as it does inside a backward pass.
    """
    import torch

    from alloralib.adapters.layers import Linear
    from alloralib.ops.scale import row_scale

    pairs = [m.adapter_parameters("default") for m in model.modules() if isinstance(m, Linear)]
    grads = {B.shape: torch.zeros_like(B) for _, B in pairs}  # one per shape: in a step, a fresh gradient is in the cache

    @torch.no_grad()
    def run() -> None:
        for A, B in pairs:
            s = row_scale(A, B, 2.0)
            _ = s * B  # for the gradient of A
            grads[B.shape].mul_(s)  # the gradient of B

    return run


def rule_share(record: Record) -> float | None:
    """The rule's median time over the median of ALLoRA's step. None if the record has no arm of ALLoRA."""
    arm = next((name for name in ("allora", "allora-train") if name in record["seconds"]), None)
    if arm is None or not record["rule_seconds"]:
        return None
    return statistics.median(record["rule_seconds"]) / statistics.median(record["seconds"][arm])


def ours(record: Record) -> str | None:
    """The arm that is the step of `allora train`; in records without it, the arm with the chunked loss; else None."""
    return next((name for name in ("allora-train", "allora-chunked") if name in record["seconds"]), None)


def table(records: dict[str, Record]) -> str:
    """A Markdown table with a row for each arm and a column for each record.

    The first row is the frozen model's median time, the others are multiples of it: median and quartiles over the rounds.
    """
    from .arms import TITLES

    lines = [f"| step of | {' | '.join(records)} |", "|---" * (1 + len(records)) + "|"]
    for name, title in TITLES.items():
        if any(name in record["seconds"] for record in records.values()):
            lines.append(f"| {title} | {' | '.join(_cell(record['seconds'], name) for record in records.values())} |")
    return "\n".join(lines)


def _cell(seconds: dict[str, list[float]], name: str) -> str:
    if name not in seconds:
        return ""
    return duration(statistics.median(seconds[name])) if name == "frozen" else spread(paired(seconds, name, "frozen"))


def targets(records: dict[str, Record]) -> list[str]:
    """Rows of a Markdown table: each target, with what every record shows and whether that meets it."""
    rows: list[str] = []
    for other, (title, most) in TARGETS.items():
        cells = [_against(record, other, most) for record in records.values()]
        rows.append(f"| step time, of {title} | {most:.2f} | {' | '.join(cells)} |")
    return rows


def _against(record: Record, other: str, most: float) -> str:
    arm = ours(record)
    if arm is None or other not in record["seconds"]:
        return "not measured"
    ratios = paired(record["seconds"], arm, other)
    return f"{spread(ratios, 3)} {verdict(ratios[1], most)}"


def verdict(value: float, most: float) -> str:
    """`met`, or `missed` in bold."""
    return "met" if value <= most else "**missed**"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=NAMES, default="smollm2")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rows", type=int, default=4, help="rows in the batch [%(default)s]")
    parser.add_argument("--length", type=int, default=128, help="tokens in each row [%(default)s]")
    parser.add_argument("--r", type=int, default=16, help="rank [%(default)s]")
    parser.add_argument("--rounds", type=int, default=11, help="rounds that count [%(default)s]")
    parser.add_argument("--warmup", type=int, default=1, help="rounds before them that do not count [%(default)s]")
    parser.add_argument("--record", default="step", help="name of the record to write [%(default)s]")
    parser.add_argument("--arms", nargs="*", default=(), help="arms to run, besides the frozen model [all]")
    a = parser.parse_args()
    record = measure(a.model, a.dtype, a.rows, a.length, a.r, a.rounds, a.warmup, tuple(a.arms))
    write(record, record_of(a.record))
    print(record["what"], table({"time": record}), sep="\n\n")
    if (share := rule_share(record)) is not None:
        print(f"\nthe ALLoRA rule alone: {share:.2%} of ALLoRA's step")


if __name__ == "__main__":
    main()
