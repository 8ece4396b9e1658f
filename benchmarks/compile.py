"""What `torch.compile` costs and saves in a training step on SmolLM2-135M, for ALLoRA and for PEFT's LoRA.

The repeated blocks are compiled, as in `allora train --compile`. Two cases: batches of one length without padding, and batches
of similar lengths as in a real run, where shapes change from batch to batch. The arms alternate round by round on the same
batch; a round is one forward pass, one backward pass and one optimizer step. Compilation starts from an empty cache for each
arm and case. The time to load the compiler is not counted.

    python -m benchmarks.compile
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import tempfile
import time
from typing import Any

from .measuring import Record, alternate, environment, record_of, write

ARMS = ("allora", "peft-lora")
Batch = dict[str, Any]


def same_length(rows: int, tokens: int, rounds: int, vocabulary: int) -> list[Batch]:
    """Batches of one length, without padding."""
    import torch

    generator = torch.Generator().manual_seed(0)
    every = torch.randint(3, vocabulary, (rounds, rows, tokens), generator=generator)
    return [{"input_ids": ids, "labels": ids, "use_cache": False} for ids in every]


def similar_lengths(rows: int, tokens: int, rounds: int, vocabulary: int) -> list[Batch]:
    """Batches as `allora train` forms them, of rows with tokens / 4 to 2 x tokens; some are padded and some are not."""
    import torch

    from alloralib.training.batches import BucketBatches

    generator = torch.Generator().manual_seed(0)
    lengths: list[int] = torch.randint(tokens // 4, 2 * tokens, (rows * 100,), generator=generator).tolist()
    made: list[Batch] = []
    for batch in BucketBatches(lengths, rows, 0).global_batches()[1 : rounds + 1]:  # the first batch is the longest
        longest = max(lengths[row] for row in batch)
        ids = torch.randint(3, vocabulary, (rows, longest), generator=generator)
        mask = torch.arange(longest) < torch.tensor([lengths[row] for row in batch])[:, None]
        labels = ids.masked_fill(~mask, -100)
        made.append({"input_ids": ids, "attention_mask": mask.long(), "labels": labels, "use_cache": False})
    return made


CASES = {"{rows} x {tokens} tokens": same_length, "{rows} rows of similar length": similar_lengths}


def step(arm: Any, batch: Batch) -> float:
    """Seconds of one step on a batch."""
    arm.batch = batch
    start = time.perf_counter()
    arm.step()
    return time.perf_counter() - start


def first_steps(arm: Any, batches: list[Batch]) -> list[float]:
    """Seconds of the first step of each program that a case needs: without padding, and with padding."""
    kinds: dict[bool, Batch] = {}
    for batch in batches:
        kinds.setdefault(bool((batch["labels"] == -100).any()), batch)
    with tempfile.TemporaryDirectory() as empty:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = empty
        return [round(step(arm, batch), 3) for batch in kinds.values()]


def measure_case(arms: dict[str, Any], batches: list[Batch], warmup: int) -> Record:
    """Seconds of every arm in every round after the first `warmup`, and of the compiled arms' first steps."""
    import torch

    torch.compiler.reset()
    first = {name: first_steps(arm, batches) for name, arm in arms.items() if name.endswith(", compiled")}
    coming = {name: iter(batches) for name in arms}
    steps = {name: lambda name=name: step(arms[name], next(coming[name])) for name in arms}
    return {"first": first, "seconds": alternate(steps, len(batches) - warmup, warmup)}


def measure(rounds: int, warmup: int, rows: int, tokens: int, r: int) -> Record:
    """Measure every case."""
    import torch

    from alloralib.training.compiling import compile_blocks

    from .arms import build_all
    from .models import smollm2

    base, batch = smollm2(rows, tokens, "float32")
    torch.compile(lambda x: x + 1)(torch.zeros(2))  # loads the compiler
    arms = build_all(ARMS, base, batch, r)
    compiled = build_all(ARMS, base, batch, r)
    for name, arm in compiled.items():
        compile_blocks(arm.model)
        arms[f"{name}, compiled"] = arm
    vocabulary = base.config.vocab_size
    del base
    cases = {
        title.format(rows=rows, tokens=tokens): measure_case(arms, make(rows, tokens, warmup + rounds, vocabulary), warmup)
        for title, make in CASES.items()
    }
    what = (
        f"training step with and without torch.compile of the blocks, SmolLM2-135M, float32, r = {r}, all linear layers, AdamW"
    )
    return {"what": what, **environment(), "cases": cases}


def table(record: Record) -> str:
    """The record as a Markdown table. Ratios and savings are medians of those within a round."""
    from .arms import TITLES

    lines = [
        "| batches | step of | eager | compiled | compiled / eager | compilation | break-even |",
        "|---|---|---|---|---|---|---|",
    ]
    for title, case in record["cases"].items():
        for name in ARMS:
            eager, compiled = case["seconds"][name], case["seconds"][f"{name}, compiled"]
            pairs = list(zip(eager, compiled, strict=True))
            first = case["first"][f"{name}, compiled"]
            taken = max(0.0, sum(first) - len(first) * statistics.median(compiled))
            saved = statistics.median(a - b for a, b in pairs)
            pays = f"{math.ceil(taken / saved):,} steps" if saved > 0 else "**never**"
            lines.append(
                f"| {title} | {TITLES[name]} | {statistics.median(eager):.2f} s | {statistics.median(compiled):.2f} s | "
                f"{statistics.median(b / a for a, b in pairs):.2f} | {taken:.0f} s | {pays} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="rounds that count [%(default)s]")
    parser.add_argument("--warmup", type=int, default=2, help="rounds before them that do not count [%(default)s]")
    parser.add_argument("--rows", type=int, default=4, help="rows in the batch [%(default)s]")
    parser.add_argument("--tokens", type=int, default=128, help="tokens in each row [%(default)s]")
    parser.add_argument("--r", type=int, default=16, help="rank [%(default)s]")
    a = parser.parse_args()
    record = measure(a.rounds, a.warmup, a.rows, a.tokens, a.r)
    write(record, record_of("compile"))
    print(record["what"], table(record), sep="\n\n")


if __name__ == "__main__":
    main()
