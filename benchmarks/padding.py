"""How many tokens padding adds, at 16 rows a batch, on every registered set that is in the data directory.

    python -m benchmarks.padding --data-dir DIR

Nothing is timed and no model runs. Training rows: padded to the longest row of the set; in random batches, each padded to
its own longest; in the batches of `allora train`, which are of similar length; and what of that padding goes through the layers
once the batches with more than 5 % of it are packed; means over five seeds. The last two again for small samples of the rows.
Test rows: as `allora` evaluates them, sorted by length; for multiple choice prompts alone and, beside them, the choices'
own tokens after the first, which are computed in the same batches behind the prompts' keys and values.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .measuring import Record, environment, record_of, write

BATCH_SIZE = 16
SEEDS = 5
MAX_LENGTH = 512
SMALL = (100, 300, 1000)
"""Rows of the small samples."""
TOKENIZERS = {"smollm2-135m": "SmolLM2", "minilm-l6": "MiniLM"}


def added(lengths: Sequence[int], batches: Iterable[Sequence[int]]) -> float:
    """Tokens of padding as a share of the others."""
    return sum(max(lengths[row] for row in batch) * len(batch) for batch in batches) / sum(lengths) - 1


def random_batches(rows: int, seed: int) -> list[list[int]]:
    order = random.Random(seed).sample(range(rows), rows)
    return [order[start : start + BATCH_SIZE] for start in range(0, rows, BATCH_SIZE)]


def token_counts(known: Any, rows: Any, tokenizer: Any) -> list[int]:
    """Tokens of every row as they are trained on: the text, or prompt, answer and end of text."""
    from alloralib.data.examples import build_examples

    examples: Any = build_examples(known.kind, rows, known.columns, processor=tokenizer, max_length=MAX_LENGTH)
    if "input_ids" in examples.column_names:
        return [len(ids) for ids in examples["input_ids"]]
    texts = [p + c + tokenizer.eos_token for p, c in zip(examples["prompt"], examples["completion"], strict=True)]
    return [min(len(ids), MAX_LENGTH) for ids in tokenizer(texts)["input_ids"]]


def bucketed(lengths: list[int]) -> dict[str, float]:
    """Padding of the batches of `allora train`, and what of it is left in the layers."""
    from alloralib.training.batches import BucketBatches
    from alloralib.training.packing import packs

    padded: list[float] = []
    packed: list[float] = []
    for seed in range(SEEDS):
        batches = BucketBatches(lengths, BATCH_SIZE, seed).global_batches()
        padded.append(added(lengths, batches))
        kept = [[[row] for row in batch] if packs([lengths[row] for row in batch]) else [batch] for batch in batches]
        packed.append(added(lengths, itertools.chain(*kept)))
    return {"buckets": statistics.fmean(padded), "packed": statistics.fmean(packed)}


def trained(lengths: list[int]) -> dict[str, Any]:
    """Padding of the training rows by how batches are made, of all rows and of small samples."""
    everything = [range(len(lengths))]
    return {
        "rows": len(lengths),
        "tokens": sum(lengths),
        "longest": max(lengths),
        "set": added(lengths, everything),
        "random": statistics.fmean(added(lengths, random_batches(len(lengths), seed)) for seed in range(SEEDS)),
        **bucketed(lengths),
        "small": {str(rows): bucketed(random.Random(rows).sample(lengths, rows)) for rows in SMALL if rows < len(lengths)},
    }


def evaluated(known: Any, rows: Any, tokenizer: Any) -> dict[str, float]:
    """Padding of the test rows as they are answered."""
    from alloralib.data.choices import questions
    from alloralib.evaluation.batching import MAX_PADDING, longest_first

    if known.kind != "multiple-choice":
        lengths = token_counts(known, rows, tokenizer)
        return {"test": added(lengths, longest_first(lengths, BATCH_SIZE, max_padding=MAX_PADDING))}
    asked = questions(rows, known.columns)
    prompts = [len(ids) for ids in tokenizer([q.prompt for q in asked])["input_ids"]]
    rest = [[len(ids) - 1 for ids in tokenizer([*q.choices], add_special_tokens=False)["input_ids"]] for q in asked]
    batches = list(longest_first(prompts, BATCH_SIZE))
    answers = [[tokens for row in batch for tokens in rest[row]] for batch in batches]
    padded = sum(max(tokens) * len(tokens) for tokens in answers)
    return {"test": added(prompts, batches), "choices": padded / max(1, sum(map(sum, answers))) - 1}


def measure(data_dir: Path) -> dict[str, Any]:
    """The padding of every set that is there, by tokenizer."""
    from alloralib.data.parts import load_parts
    from alloralib.data.registry import REGISTRY
    from alloralib.errors import DataError
    from alloralib.training.models import load_tokenizer, locate

    found: dict[str, dict[str, Any]] = {name: {} for name in TOKENIZERS}
    for name, known in REGISTRY.items():
        if known.kind == "image-classification":
            continue
        try:
            parts = load_parts(known.kind, known.columns, data=name, data_dir=data_dir)
        except DataError:  # not there, or without training rows
            continue
        for model in TOKENIZERS:
            if model == "minilm-l6" and known.kind != "classification":
                continue
            tokenizer = load_tokenizer(locate(model))
            counts = token_counts(known, parts.train, tokenizer)
            found[model][name] = trained(counts) | evaluated(known, parts.test, tokenizer)
    return {
        "what": f"tokens that padding adds at {BATCH_SIZE} rows a batch, as a share of the others; means over {SEEDS} seeds",
        **environment(),
        "padding": found,
    }


def table(record: Record) -> str:
    """The record as two Markdown tables: all rows of each set, and small samples."""
    lines = [
        "| tokenizer | set | rows | tokens a row | to the longest | random batches | `allora train` | packed "
        "| test rows | choices |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    small = [
        "",
        "*Packed* is what goes through the layers once batches with more than 5 % are packed; attention gets their rows padded "
        "again. Of small samples, in the batches of `allora train`, and packed:",
        "",
        "| tokenizer | set | " + " | ".join(f"{rows:,} rows | packed" for rows in SMALL) + " |",
        "|---|---|" + "---|---|" * len(SMALL),
    ]
    for model, sets in record["padding"].items():
        for name, found in sets.items():
            start = f"| {TOKENIZERS[model]} | {name} | "
            whole = [_share(found, key) for key in ("buckets", "packed", "test", "choices")]
            lines.append(
                f"{start}{found['rows']:,} | {found['tokens'] / found['rows']:.0f} | {found['set']:.0%} "
                f"| {found['random']:.0%} | " + " | ".join(whole) + " |"
            )
            samples = [found["small"].get(str(rows), {}) for rows in SMALL]
            small.append(start + " | ".join(f"{_share(s, 'buckets')} | {_share(s, 'packed')}" for s in samples) + " |")
    return "\n".join(lines + small)


def _share(found: dict[str, float], key: str) -> str:
    return f"{found[key]:.1%}" if key in found else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path(os.environ.get("ALLORA_DATA_DIR", "../shared/data")))
    record = measure(parser.parse_args().data_dir)
    write(record, record_of("padding", ""))
    print(record["what"], table(record), sep="\n\n")


if __name__ == "__main__":
    main()
