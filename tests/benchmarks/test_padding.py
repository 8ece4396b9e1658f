"""What the padding benchmark counts and shows."""

from types import SimpleNamespace

import pytest

from alloralib.data.forms import Columns
from alloralib.data.table import Table
from benchmarks import compile as compiling
from benchmarks import padding

from ..conftest import WORDS
from ..tiny import word_level

TABLE = Table(
    source="rows.jsonl",
    sha256="",
    columns={
        "text": ["the film was", "the"],
        "label": ["good", "bad"],
        "prompt": ["the film was", "the"],
        "completion": [" good", " bad"],
        "choices": [[" good", " a bad film"], [" bad", " good"]],
        "answer": [0, 0],
    },
)


def test_padding_is_a_share_of_the_other_tokens() -> None:
    assert padding.added([1, 3, 2], [[0, 1], [2]]) == pytest.approx(2 / 6)


def test_the_overview_shows_median_and_range_over_the_sets() -> None:
    sets = {
        name: {"rows": 90, "tokens": 900, "set": share, "random": share, "buckets": share, "packed": 0.0, "test": share}
        | {"small": small}
        for name, share, small in (("a", 0.1, {"100": {"buckets": 0.5, "packed": 0.2}}), ("b", 0.2, {}), ("c", 0.6, {}))
    }
    record = {"padding": {"smollm2-135m": sets}}
    middle = "20.0% (10.0% to 60.0%)"
    small = "50.0% (50.0% to 50.0%) | 20.0% (20.0% to 20.0%)"
    expected = f"| SmolLM2 | 3 | {middle} | {middle} | {middle} | 0.0% (0.0% to 0.0%) | {small} | {middle} |"
    assert padding.overview(record).splitlines()[-1] == expected
    assert "| SmolLM2 | a | 90 | 10 | 10% | 10% | 10.0% | 0.0% | 50.0% | 20.0% | 10.0% |  |" in padding.table(record)


@pytest.mark.parametrize(
    ("kind", "columns", "tokens"),
    [
        ("classification", Columns(text="text", label="label"), [3, 1]),
        ("causal-lm", Columns(prompt="prompt", completion="completion"), [5, 3]),  # with answer and end of text
        ("multiple-choice", Columns(prompt="prompt", choices="choices", answer="answer"), [5, 3]),
    ],
)
def test_tokens_are_counted_as_they_are_trained_and_evaluated(kind: str, columns: Columns, tokens: list[int]) -> None:
    tokenizer, known = word_level(WORDS), SimpleNamespace(kind=kind, columns=columns)
    assert padding.token_counts(known, TABLE, tokenizer) == tokens
    found = padding.evaluated(known, TABLE, tokenizer)
    if kind == "multiple-choice":
        assert found == {"test": 2 * 3 / 4 - 1, "choices": 4 * 2 / 2 - 1}  # prompts of 3 and 1; 0, 2, 0 and 0 further tokens
    else:
        assert found == {"test": pytest.approx(2 * max(tokens) / sum(tokens) - 1)}


def test_batches_of_similar_length_hold_padding_without_labels() -> None:
    batches = compiling.similar_lengths(rows=4, tokens=16, rounds=8, vocabulary=50)
    assert len(batches) == 8
    assert any((batch["labels"] == -100).any() for batch in batches)
    for batch in batches:
        padded = batch["attention_mask"] == 0
        assert ((batch["labels"] == -100) == padded).all()
        assert not padded.all(dim=0).any(), "the longest row has no padding"
