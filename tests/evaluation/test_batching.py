"""Batches of rows of similar length."""

import itertools

import datasets
from hypothesis import given
from hypothesis import strategies as st

from alloralib.evaluation.batching import batches, longest_first


def test_rows_come_by_falling_length() -> None:
    lengths = [1 + (5 * i) % 9 for i in range(40)]
    seen = [row for rows in longest_first(lengths, 8) for row in rows]
    assert sorted(seen) == list(range(40))
    assert [lengths[row] for row in seen] == sorted(lengths, reverse=True)


@given(lengths=st.lists(st.integers(1, 300), max_size=60), size=st.integers(1, 16), min_tokens=st.sampled_from([0, 64, 512]))
def test_a_large_enough_batch_ends_before_its_padding_grows(lengths: list[int], size: int, min_tokens: int) -> None:
    uncut = list(longest_first(lengths, size))
    assert all(len(batch) == size for batch in uncut[:-1])
    found = list(longest_first(lengths, size, max_padding=0.05, min_tokens=min_tokens))
    rows = [row for batch in found for row in batch]
    assert rows == [row for batch in uncut for row in batch]
    for batch in found:
        longest, tokens = lengths[batch[0]], sum(lengths[row] for row in batch)
        assert 0 < len(batch) <= size
        # little padding, or too small before its last row to be split
        assert longest * len(batch) <= 1.05 * tokens or longest * (len(batch) - 1) < min_tokens
    for batch, after in itertools.pairwise(found):  # no batch ends early without a reason
        longest, more = lengths[batch[0]], sum(lengths[row] for row in [*batch, after[0]])
        assert len(batch) == size or longest * (len(batch) + 1) > 1.05 * more


def test_a_long_row_gets_its_own_batch() -> None:
    """In one batch, the short rows would be padded to the long one."""
    examples = datasets.Dataset.from_dict({"input_ids": [[1] * 600, [1] * 5, [1] * 5]})
    assert [rows for rows, _ in batches(examples, list, 3)] == [[0], [1, 2]]
