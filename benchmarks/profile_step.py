"""Where the time of a step goes, by torch's profiler.

Operations are sorted into categories by the phase they run in and by their shapes: a matrix product that belongs to an adapter
has a side of r, or of 2r for the two uses of B. The profiler's overhead is included, so compare shares, not sums.

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
RULE, NODE, OPTIMIZER = "the rule: norms and scale", "the node's own Python", "optimiser"
CATEGORIES = {
    BASE: "frozen linear layers",
    LOGITS: "logits and loss",
    ATTENTION: "attention",
    OTHERS: "norms, activations, additions",
    H: "H = X Aᵀ",
    OUT: "Y += H Bᵀ",
    P: "P = G [sB, B]",
    GRADS: "gradients of B and A: Gᵀ H, Pᵀ X",
    GRAD_X: "gradient of X: += P A",
    RULE: "ALLoRA rule: row norms and scale",
    NODE: "Python inside the fused node",
    OPTIMIZER: "optimizer",
}
"""Categories by the names that records use, with the titles that tables use."""
_ONEDNN = "mkldnn::_linear_pointwise"
_PRODUCTS = {"aten::mm": 0, "aten::addmm": 1, "aten::addmm_": 1, _ONEDNN: 0}
"""Matrix products, with the position of their first factor. oneDNN takes the second factor transposed."""


def product(name: str, shapes: list[list[int]]) -> tuple[int, int, int] | None:
    """(m, k, n) of a product of m x k by k x n, or None if the operation is not a product of two matrices."""
    at = _PRODUCTS.get(name)
    if at is None or len(shapes) < at + 2 or any(len(shape) != 2 for shape in shapes[at : at + 2]):
        return None
    (m, k), second = shapes[at : at + 2]
    return m, k, second[0] if name == _ONEDNN else second[1]


def category(phase: str, name: str, shapes: list[list[int]], *, tokens: int, r: int, vocabulary: int) -> str:
    """The category of an operation.

    Args:
        phase: `forward`, `backward` or `update`.
        name: the profiler's name of the operation.
        shapes: shapes of its tensor arguments.
        tokens: tokens in the batch.
        r: rank of the adapters.
        vocabulary: size of the model's vocabulary.

    >>> category("backward", "aten::mm", [[512, 576], [576, 32]], tokens=512, r=16, vocabulary=49152) == P
    True
    """
    if phase == "update":
        return OPTIMIZER
    if name.startswith("_LoraLinear"):
        return NODE
    if "scaled_dot_product" in name:
        return ATTENTION
    if any(vocabulary in shape for shape in shapes):
        return LOGITS
    narrow = {r, 2 * r}
    factors = product(name, shapes)
    if factors is not None:
        m, k, n = factors
        if sum(side in narrow for side in factors) > 1:  # A A^T, and B times it
            return RULE
        if k in narrow:
            return OUT if phase == "forward" else GRAD_X
        if n in narrow:
            return H if phase == "forward" else (P if m == tokens else GRADS)
        return GRADS if m in narrow else BASE
    first = shapes[0] if shapes else []
    if phase == "backward" and first and first[0] != tokens and first[1:] in ([], [1], [r]):
        return RULE  # of shape (n1, r), (n1, 1) or (n1,)
    return OTHERS


def measure(rows: int, length: int, r: int, rounds: int) -> Record:
    """Median seconds and operations of every category in one step, with the arms in alternation."""
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
    return {"what": what, "rounds": rounds, **environment(), "seconds": medians, "operations": operations}


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


def table(records: dict[str, Record]) -> str:
    """A Markdown table: milliseconds by category for every record and arm, with the rate of ALLoRA's products in GFLOP/s."""
    heads = [f"{kind}: frozen | ALLoRA (GFLOP/s) | ALLoRA, no oneDNN | PEFT LoRA" for kind in records]
    lines = [f"| ms | {' | '.join(heads)} |", "|---" * (1 + len(ARMS) * len(records)) + "|"]
    for c, title in CATEGORIES.items():
        cells = [cell for record in records.values() for cell in _cells(record, c)]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cells(record: Record, what: str) -> list[str]:
    seconds, operations = record["seconds"], record["operations"]["allora"][what]
    cells = [f"{seconds[name][what] * 1000:.0f}" for name in ARMS]
    if operations:
        cells[1] += f" ({operations / seconds['allora'][what] / 1e9:.0f})"
    return cells


def share(record: Record, what: str) -> float:
    """A category's share of ALLoRA's step."""
    return record["seconds"]["allora"][what] / sum(record["seconds"]["allora"].values())


def heaviest(record: Record) -> list[tuple[str, float]]:
    """What ALLoRA without oneDNN adds to each category, as a share of the frozen step: titles and shares, largest first."""
    frozen, ours = record["seconds"]["frozen"], record["seconds"]["allora-default"]
    total = sum(frozen.values())
    return sorted(((title, (ours[c] - frozen[c]) / total) for c, title in CATEGORIES.items()), key=lambda pair: -pair[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4, help="rows in the batch [%(default)s]")
    parser.add_argument(
        "--length", type=int, default=128, help="tokens in each row; rows x length must not be a size of a layer [%(default)s]"
    )
    parser.add_argument("--r", type=int, default=16, help="rank [%(default)s]")
    parser.add_argument("--rounds", type=int, default=7, help="rounds that count [%(default)s]")
    a = parser.parse_args()
    record = measure(a.rows, a.length, a.r, a.rounds)
    write(record, record_of("profile"))
    print(record["what"], table({"this processor": record}), sep="\n\n")


if __name__ == "__main__":
    main()
