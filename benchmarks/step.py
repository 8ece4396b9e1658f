"""One training step on SmolLM2-135M, every arm in turn, in one process: `make bench`.

The arms alternate round by round, so that a slow minute of the machine hits all of them. A round is one forward pass, one
backward pass and one optimiser step on the same batch. The frozen model, forward and backward to its inputs, is the
limit: whatever is trained through it costs at least that.

    python benchmarks/step.py                  measure, write the record, print the table
    python benchmarks/step.py --table          print the table of the committed record
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RECORD = Path(__file__).parent / "records" / "step.json"
TITLES = {
    "frozen": "frozen model (the limit)",
    "allora": "**alloralib, ALLoRA**",
    "peft-lora": "PEFT LoRA, dropout 0",
    "peft-lora-dropout": "PEFT LoRA, dropout .05",
    "peft-dora": "PEFT DoRA",
    "full": "full fine-tuning",
}
LEARNING_RATE = 1e-4


def build_arms(base: Any, r: int, batch: Any) -> dict[str, Callable[[], None]]:
    """One step of each arm. Adapted models share no weights, so that no arm warms another's memory."""
    import torch
    from peft import LoraConfig, get_peft_model

    from alloralib import AlloraConfig

    ids, labels = batch

    def trained(model: Any) -> Callable[[], None]:
        model.train()
        optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE)

        def step() -> None:
            model(input_ids=ids, labels=labels, use_cache=False).loss.backward()
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

        return step

    def frozen() -> Callable[[], None]:
        model = copy.deepcopy(base).train().requires_grad_(False)
        inputs = model.get_input_embeddings()(ids).requires_grad_(True)

        def step() -> None:
            model(inputs_embeds=inputs, labels=labels, use_cache=False).loss.backward()
            inputs.grad = None

        return step

    def adapted(config: Any) -> Callable[[], None]:
        torch.manual_seed(0)
        return trained(get_peft_model(copy.deepcopy(base), config))

    linear = {"r": r, "target_modules": "all-linear"}
    return {
        "frozen": frozen(),
        "allora": adapted(AlloraConfig(**linear)),
        "peft-lora": adapted(LoraConfig(lora_alpha=r, **linear)),
        "peft-lora-dropout": adapted(LoraConfig(lora_alpha=r, lora_dropout=0.05, **linear)),
        "peft-dora": adapted(LoraConfig(lora_alpha=r, use_dora=True, **linear)),
        "full": trained(copy.deepcopy(base)),
    }


def measure(rounds: int, warmup: int, rows: int, tokens: int, r: int) -> dict[str, Any]:
    """Seconds of every arm in every round, and where and with what they were taken."""
    import peft
    import torch
    import transformers

    import alloralib
    from alloralib.training.models import load_model, locate

    base = load_model(locate("smollm2-135m"), task="causal-lm", labels=None, dtype=torch.float32, pad_token_id=None)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, base.config.vocab_size, (rows, tokens), generator=generator)
    arms = build_arms(base, r, (ids, ids))
    del base
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    gc.disable()
    for turn in range(warmup + rounds):
        for name, step in arms.items():
            start = time.perf_counter()
            step()
            if turn >= warmup:
                seconds[name].append(round(time.perf_counter() - start, 5))
        gc.collect()
        print(f"round {turn + 1} of {warmup + rounds}", end="\r", flush=True)
    print()
    return {
        "what": f"training step, SmolLM2-135M, float32, {rows} x {tokens} tokens, r = {r}, all linear layers, AdamW",
        "command": f"python benchmarks/step.py --rounds {rounds} --warmup {warmup} --rows {rows} --tokens {tokens} --r {r}",
        "machine": {"processor": platform.machine(), "threads": torch.get_num_threads()},
        "versions": {
            "python": platform.python_version(),
            "alloralib": alloralib.__version__,
            "torch": torch.__version__,
            "peft": peft.__version__,
            "transformers": transformers.__version__,
        },
        "seconds": seconds,
    }


def ratios(record: dict[str, Any], arm: str) -> dict[str, float]:
    """Median over the rounds of (arm / other), each ratio within one round."""
    seconds = record["seconds"]
    return {other: statistics.median(a / b for a, b in zip(seconds[arm], seconds[other], strict=True)) for other in seconds}


def table(record: dict[str, Any]) -> str:
    """The record as a Markdown table."""
    lines = ["| step of | median | quartiles | times the limit | ALLoRA takes |", "|---|---|---|---|---|"]
    ours = ratios(record, "allora")
    for name, title in TITLES.items():
        values = record["seconds"][name]
        low, middle, high = statistics.quantiles(values, n=4)
        share = "" if name == "allora" else f"{ours[name]:.2f} of it"
        lines.append(f"| {title} | {middle:.2f} s | {low:.2f} to {high:.2f} | {ratios(record, name)['frozen']:.2f} | {share} |")
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
