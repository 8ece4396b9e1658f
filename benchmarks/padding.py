"""How many tokens padding adds, at batch size 16, on every registered data set in the data directory.

    python -m benchmarks.padding --data-dir DIR

Nothing is timed and no model runs. Training rows are counted four ways, as means over five seeds: padded to the longest row of
the set; in random batches, each padded to its longest row; in the batches of `allora train`, which hold rows of similar length;
and the padding that is left in the layers once batches with more than 5 % of it are packed. The last two are also counted for
small samples. Test rows are counted as `allora` evaluates them, sorted by length. For multiple choice, the choices' tokens
after the first are counted apart: they run in the same batches, behind the prompts' keys and values.
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
"""Sizes of the small samples."""
TOKENIZERS = {"smollm2-135m": "SmolLM2", "minilm-l6": "MiniLM"}


def added(lengths: Sequence[int], batches: Iterable[Sequence[int]]) -> float:
    """Tokens of padding, as a share of the other tokens."""
    return sum(max(lengths[row] for row in batch) * len(batch) for batch in batches) / sum(lengths) - 1


def random_batches(rows: int, seed: int) -> list[list[int]]:
    order = random.Random(seed).sample(range(rows), rows)
    return [order[start : start + BATCH_SIZE] for start in range(0, rows, BATCH_SIZE)]


def token_counts(known: Any, rows: Any, tokenizer: Any) -> list[int]:
    """Number of tokens of every row in training: of the text, or of prompt, answer and end of text."""
    from alloralib.data.examples import build_examples

    examples: Any = build_examples(known.kind, rows, known.columns, processor=tokenizer, max_length=MAX_LENGTH)
    if "input_ids" in examples.column_names:
        return [len(ids) for ids in examples["input_ids"]]
    texts = [p + c + tokenizer.eos_token for p, c in zip(examples["prompt"], examples["completion"], strict=True)]
    return [min(len(ids), MAX_LENGTH) for ids in tokenizer(texts)["input_ids"]]


def bucketed(lengths: list[int]) -> dict[str, float]:
    """Padding in the batches of `allora train`, before and after packing."""
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
    """Padding of the training rows for each way to form batches, for all rows and for small samples."""
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
    """Padding of the test rows in evaluation."""
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
    """The padding of every data set in the directory, by tokenizer."""
    from alloralib.data.parts import load_parts
    from alloralib.data.registry import REGISTRY
    from alloralib.errors import DataError
    from alloralib.training.models import load_tokenizer, locate

    found: dict[str, dict[str, Any]] = {name: {} for name in TOKENIZERS}
    for name, known in REGISTRY.items():
        if known.kind == "image-classification":
            continue
        try:
            parts = load_parts(known.kind, known.columns, data=name, data_dir=data_dir, held_out="random")
        except DataError:  # not in the directory, or without training rows
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
    """The record as a Markdown table: all rows of each set, and samples of 100 rows."""
    lines = [
        "| tokenizer | set | rows | tokens per row | longest of the set | random batches | `allora train` | packed "
        "| 100 rows, `allora train` | 100 rows, packed | test rows | choices |",
        "|---" * 12 + "|",
    ]
    for model, sets in record["padding"].items():
        for name, found in sets.items():
            small = found["small"].get("100", {})
            shares = [_share(found, "buckets"), _share(found, "packed"), _share(small, "buckets"), _share(small, "packed")]
            lines.append(
                f"| {TOKENIZERS[model]} | {name} | {found['rows']:,} | {found['tokens'] / found['rows']:.0f} "
                f"| {found['set']:.0%} | {found['random']:.0%} | {' | '.join(shares)} | {_share(found, 'test')} "
                f"| {_share(found, 'choices')} |"
            )
    return "\n".join(lines)


def overview(record: Record) -> str:
    """A short Markdown table: median over the data sets, and range."""
    lines = [
        "| tokenizer | sets | longest of the set | random batches | `allora train` | packed "
        "| 100 rows, `allora train` | 100 rows, packed | test rows |",
        "|---" * 9 + "|",
    ]
    for model, sets in record["padding"].items():
        cells = [_range([found[key] for found in sets.values()]) for key in ("set", "random", "buckets", "packed")]
        small = [found["small"]["100"] for found in sets.values() if "100" in found["small"]]
        cells += [_range([found[key] for found in small]) for key in ("buckets", "packed")]
        cells += [_range([found["test"] for found in sets.values()])]
        lines.append(f"| {TOKENIZERS[model]} | {len(sets)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _range(shares: list[float]) -> str:
    return f"{statistics.median(shares):.1%} ({min(shares):.1%} to {max(shares):.1%})"


def _share(found: dict[str, float], key: str) -> str:
    return f"{found[key]:.1%}" if key in found else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = Path(os.environ.get("ALLORA_DATA_DIR", "../shared/data"))
    parser.add_argument("--data-dir", type=Path, default=data, help="directory of the data sets")
    record = measure(parser.parse_args().data_dir)
    write(record, record_of("padding", ""))
    print(record["what"], table(record), sep="\n\n")


if __name__ == "__main__":
    main()
