"""What `torch.compile` takes and saves in a training step on SmolLM2-135M: ALLoRA and PEFT's LoRA, with and without.

The repeated blocks are compiled, as `allora train --compile` does it, for both. Two cases: batches of one length without
padding, and batches of similar lengths as a run has them, where no two need be alike. The arms alternate round by round
on the same batch, so that a slow minute of the machine hits all of them; a round is one forward pass, one backward pass
and one optimiser step. Compiling starts from an empty cache for each arm and case, as on a machine that has compiled
nothing before; loading the compiler is left out.

    python benchmarks/compile.py               measure, write the record, print the table
    python benchmarks/compile.py --table       print the table of the committed record
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import math
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RECORD = Path(__file__).parent / "records" / "compile.json"
TITLES = {"allora": "**alloralib, ALLoRA**", "peft-lora": "PEFT LoRA, dropout 0"}
LEARNING_RATE = 1e-4
Batch = dict[str, Any]


def same_length(rows: int, tokens: int, rounds: int, vocabulary: int) -> list[Batch]:
    """Batches of one length, nothing padded."""
    import torch

    generator = torch.Generator().manual_seed(0)
    every = torch.randint(3, vocabulary, (rounds, rows, tokens), generator=generator)
    return [{"input_ids": ids, "labels": ids} for ids in every]


def similar_lengths(rows: int, tokens: int, rounds: int, vocabulary: int) -> list[Batch]:
    """Batches of a run's own making, of rows between tokens / 4 and 2 tokens long; some are padded and some are not."""
    import torch

    from alloralib.training.batches import BucketBatches

    generator = torch.Generator().manual_seed(0)
    lengths: list[int] = torch.randint(tokens // 4, 2 * tokens, (rows * 100,), generator=generator).tolist()
    made: list[Batch] = []
    for batch in BucketBatches(lengths, rows, 0).global_batches()[1 : rounds + 1]:  # the first one is the longest
        longest = max(lengths[row] for row in batch)
        ids = torch.randint(3, vocabulary, (rows, longest), generator=generator)
        mask = torch.arange(longest) < torch.tensor([lengths[row] for row in batch])[:, None]
        made.append({"input_ids": ids, "attention_mask": mask.long(), "labels": ids.masked_fill(~mask, -100)})
    return made


CASES = {"{rows} x {tokens} tokens": same_length, "{rows} rows of similar length": similar_lengths}


def build(base: Any, config: Any) -> tuple[Any, Callable[[Batch], None]]:
    """A model with its adapter, and its training step."""
    import torch
    from peft import get_peft_model

    torch.manual_seed(0)
    model = get_peft_model(copy.deepcopy(base), config).train()
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE)

    def step(batch: Batch) -> None:
        model(**batch, use_cache=False).loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return model, step


def timed(step: Callable[[Batch], None], batch: Batch) -> float:
    """Seconds of one step."""
    start = time.perf_counter()
    step(batch)
    return time.perf_counter() - start


def first_steps(step: Callable[[Batch], None], batches: list[Batch]) -> list[float]:
    """Seconds of the first step of each program a case needs: of one without padding, of one with."""
    kinds: dict[bool, Batch] = {}
    for batch in batches:
        kinds.setdefault(bool((batch["labels"] == -100).any()), batch)
    with tempfile.TemporaryDirectory() as empty:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = empty
        return [round(timed(step, batch), 3) for batch in kinds.values()]


def measure_case(
    arms: dict[str, Callable[[Batch], None]], batches: list[Batch], warmup: int
) -> dict[str, dict[str, list[float]]]:
    """Seconds of every arm in every round after `warmup` of them, and of the compiled arms' first steps."""
    import torch

    torch.compiler.reset()
    first = {name: first_steps(step, batches) for name, step in arms.items() if name.endswith(", compiled")}
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for turn, batch in enumerate(batches):
        for name, step in arms.items():
            taken = timed(step, batch)
            if turn >= warmup:
                seconds[name].append(round(taken, 5))
        gc.collect()
        print(f"round {turn + 1} of {len(batches)}", end="\r", flush=True)
    print()
    return {"first": first, "seconds": seconds}


def measure(rounds: int, warmup: int, rows: int, tokens: int, r: int) -> dict[str, Any]:
    """Every case, and where and with what it was measured."""
    import peft
    import torch
    import transformers
    from peft import LoraConfig

    import alloralib
    from alloralib import AlloraConfig
    from alloralib.training.compiling import compile_blocks
    from alloralib.training.models import load_model, locate

    base = load_model(locate("smollm2-135m"), task="causal-lm", labels=None, dtype=torch.float32, pad_token_id=None)
    linear = {"r": r, "target_modules": "all-linear"}
    configs = {"allora": AlloraConfig(**linear), "peft-lora": LoraConfig(lora_alpha=r, **linear)}
    torch.compile(lambda x: x + 1)(torch.zeros(2))  # loads the compiler
    arms: dict[str, Callable[[Batch], None]] = {}
    for name, config in configs.items():
        arms[name] = build(base, config)[1]
        model, arms[f"{name}, compiled"] = build(base, config)
        compile_blocks(model)
    vocabulary = base.config.vocab_size
    del base
    gc.disable()
    cases = {
        title.format(rows=rows, tokens=tokens): measure_case(arms, make(rows, tokens, warmup + rounds, vocabulary), warmup)
        for title, make in CASES.items()
    }
    return {
        "what": f"training step with and without torch.compile of the blocks, SmolLM2-135M, float32, r = {r}, all linear "
        "layers, AdamW",
        "command": f"python benchmarks/compile.py --rounds {rounds} --warmup {warmup} --rows {rows} --tokens {tokens} --r {r}",
        "machine": {"processor": platform.machine(), "threads": torch.get_num_threads()},
        "versions": {
            "python": platform.python_version(),
            "alloralib": alloralib.__version__,
            "torch": torch.__version__,
            "peft": peft.__version__,
            "transformers": transformers.__version__,
        },
        "cases": cases,
    }


def table(record: dict[str, Any]) -> str:
    """The record as a Markdown table. Ratios and savings are medians over pairs within one round."""
    lines = [
        "| batches | step of | eager | compiled | compiled takes | compiling takes | pays after |",
        "|---|---|---|---|---|---|---|",
    ]
    for title, case in record["cases"].items():
        for name, arm in TITLES.items():
            eager, compiled = case["seconds"][name], case["seconds"][f"{name}, compiled"]
            pairs = list(zip(eager, compiled, strict=True))
            first = case["first"][f"{name}, compiled"]
            taken = max(0.0, sum(first) - len(first) * statistics.median(compiled))
            saved = statistics.median(a - b for a, b in pairs)
            pays = f"{math.ceil(taken / saved):,} steps" if saved > 0 else "never"
            lines.append(
                f"| {title} | {arm} | {statistics.median(eager):.2f} s | {statistics.median(compiled):.2f} s | "
                f"{statistics.median(b / a for a, b in pairs):.2f} of it | {taken:.0f} s | {pays} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="print the table of the committed record and stop")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--r", type=int, default=16)
    parser.add_argument("--output", type=Path, default=RECORD)
    arguments = parser.parse_args()
    if arguments.table:
        print(table(json.loads(arguments.output.read_text(encoding="utf-8"))))
        return
    record = measure(arguments.rounds, arguments.warmup, arguments.rows, arguments.tokens, arguments.r)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(record["what"], table(record), sep="\n\n")


if __name__ == "__main__":
    main()
