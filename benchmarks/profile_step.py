"""Where a step's time goes: operations by torch's profiler, named by what they are in the step.

A product is known by the phase it runs in and by its shape: one side of the adapters' products is r, or r times the number of
layers that share the input, or the 2r of the two uses of B. The profiler's own cost is in the figures: shares count, not sums.

    python -m benchmarks.profile_step
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

from .measuring import Record, environment, record_of, shuffled, write

ARMS = ("frozen", "allora", "allora-default", "peft-lora")
BASE, LOGITS, ATTENTION, OTHERS = "frozen linear layers", "logits and loss", "attention", "norms, activations, additions"
H, OUT, P = "H = X Aᵀ", "Y += H Bᵀ", "P = G [sB, B]"
GRADS, GRAD_X = "for B and A: Gᵀ H, Pᵀ X", "for X: += P A"
RULE, NODE, OPTIMISER = "the rule: norms and scale", "the node's own Python", "optimizer"
CATEGORIES: tuple[str, ...] = (BASE, LOGITS, ATTENTION, OTHERS, H, OUT, P, GRADS, GRAD_X, RULE, NODE, OPTIMISER)
_ONEDNN = "mkldnn::_linear_pointwise"
_PRODUCTS = {"aten::mm": 0, "aten::addmm": 1, "aten::addmm_": 1, _ONEDNN: 0}
"""Matrix products, and at which argument their two factors begin. oneDNN's takes the second one transposed."""


def product(name: str, shapes: list[list[int]]) -> tuple[int, int, int] | None:
    """(m, k, n) of a product of m x k by k x n, or None if the operation is none."""
    at = _PRODUCTS.get(name)
    if at is None or len(shapes) < at + 2 or any(len(shape) != 2 for shape in shapes[at : at + 2]):
        return None
    (m, k), second = shapes[at : at + 2]
    return m, k, second[0] if name == _ONEDNN else second[1]


def category(phase: str, name: str, shapes: list[list[int]], *, tokens: int, r: int, vocabulary: int) -> str:
    """What an operation is in the step.

    >>> category("backward", "aten::mm", [[512, 576], [576, 32]], tokens=512, r=16, vocabulary=49152) == P
    True
    """
    if phase == "update":
        return OPTIMISER
    if name.startswith("_LoraLinears"):
        return NODE
    if "scaled_dot_product" in name:
        return ATTENTION
    if any(vocabulary in shape for shape in shapes):
        return LOGITS
    narrow = {r, 2 * r, 3 * r}
    factors = product(name, shapes)
    if factors is not None:
        m, k, n = factors
        if sum(side in narrow for side in factors) > 1:  # A A^T, and B with it
            return RULE
        if k in narrow:
            return OUT if phase == "forward" else GRAD_X
        if n in narrow:
            return H if phase == "forward" else (P if m == tokens else GRADS)
        return GRADS if m in narrow else BASE
    first = shapes[0] if shapes else []
    if phase == "backward" and first and first[0] != tokens and first[1:] in ([], [1], [r]):
        return RULE  # of shape (n1, r), (n1, 1) or (n1,), or of the rows of all layers
    return OTHERS


def measure(rows: int, length: int, r: int, rounds: int) -> Record:
    """Median seconds and operations of every category in one step, for the arms in turns."""
    from .arms import build_all
    from .models import smollm2

    base, batch = smollm2(rows, length, "float32")
    arms = build_all(ARMS, base, batch, r)
    known = {"tokens": rows * length, "r": r, "vocabulary": base.config.vocab_size}
    del base
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in ARMS}
    operations: dict[str, dict[str, int]] = {}
    for turn, names in enumerate(shuffled(arms, rounds + 1)):
        for name in names:
            seconds, operations[name] = _profiled(arms[name], known)
            if turn:
                taken[name].append(seconds)
        print(f"  round {turn} of {rounds}", end="\r", flush=True)
    medians = {
        name: {c: round(statistics.median(step[c] for step in steps), 6) for c in CATEGORIES} for name, steps in taken.items()
    }
    what = f"operations of a training step, SmolLM2-135M, float32, {rows} x {length} tokens, r = {r}"
    return {
        "what": what,
        "rounds": rounds,
        **environment(),
        "freed_memory": "kept",
        "seconds": medians,
        "operations": operations,
    }


def _profiled(arm: Any, known: dict[str, int]) -> tuple[dict[str, float], dict[str, int]]:
    """Seconds and floating-point operations of one step, by category."""
    from torch.profiler import ProfilerActivity, profile

    seconds: dict[str, float] = dict.fromkeys(CATEGORIES, 0.0)
    operations: dict[str, int] = dict.fromkeys(CATEGORIES, 0)
    result: list[Any] = []
    passes = {"forward": lambda: result.append(arm.loss()), "backward": lambda: result.pop().backward(), "update": arm.update}
    for phase, run in passes.items():
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler, arm.paths():
            run()
        for event in profiler.key_averages(group_by_input_shape=True):
            shapes = [shape for shape in event.input_shapes if isinstance(shape, list)]
            what = category(phase, event.key, shapes, **known)
            seconds[what] += event.self_cpu_time_total / 1e6
            factors = product(event.key, shapes)
            if factors is not None:
                m, k, n = factors
                operations[what] += 2 * m * k * n * event.count
    return seconds, operations


def table(record: Record) -> str:
    """The record as a Markdown table: milliseconds by category, the rate of ALLoRA's arithmetic, and what it takes more than
    the limit where both take torch's products."""
    seconds, operations = record["seconds"], record["operations"]["allora"]
    lines = [
        "| operation | frozen | ALLoRA | share of its step | GFLOP/s | by torch's products | more than frozen | PEFT LoRA |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for c in CATEGORIES:
        frozen, ours, default, theirs = (seconds[name][c] * 1000 for name in ARMS)
        rate = f"{operations[c] / ours / 1e6:.0f}" if operations[c] else ""
        cells = (
            c,
            f"{frozen:.1f} ms",
            f"{ours:.1f} ms",
            f"{share(record, c):.1%}",
            rate,
            f"{default:.1f} ms",
            f"{default - frozen:+.1f}",
        )
        lines.append("| " + " | ".join((*cells, f"{theirs:.1f} ms")) + " |")
    return "\n".join(lines)


def share(record: Record, what: str) -> float:
    """A category's share of ALLoRA's step."""
    return record["seconds"]["allora"][what] / sum(record["seconds"]["allora"].values())


def heaviest(record: Record) -> list[tuple[str, float]]:
    """Categories by how much more of the limit's time ALLoRA by torch's products spends in them, the worst first."""
    frozen, ours = record["seconds"]["frozen"], record["seconds"]["allora-default"]
    total = sum(frozen.values())
    return sorted(((c, (ours[c] - frozen[c]) / total) for c in CATEGORIES), key=lambda pair: -pair[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=128, help="tokens in each row; rows x length may be no layer's size")
    parser.add_argument("--r", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    a = parser.parse_args()
    record = measure(a.rows, a.length, a.r, a.rounds)
    write(record, record_of("profile"))
    print(record["what"], table(record), sep="\n\n")


if __name__ == "__main__":
    main()
