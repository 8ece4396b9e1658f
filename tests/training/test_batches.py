"""Batches: every row once an epoch, the same rows for any number of processes, little padding."""

import random

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alloralib.training.batches import POOL, BucketBatches, lengths_of

lengths = st.lists(st.integers(1, 60), min_size=1, max_size=150)


@given(lengths, st.integers(1, 9), st.integers(0, 5), st.integers(0, 3))
def test_every_row_once_an_epoch_and_the_longest_first(rows: list[int], size: int, seed: int, epoch: int) -> None:
    sampler = BucketBatches(rows, size, seed)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert sorted(row for batch in batches for row in batch) == list(range(len(rows)))
    assert len(batches) == len(sampler)
    assert all(len(batch) == size for batch in batches[:-1])
    if len(rows) >= size:
        first = max(rows[row] for row in batches[0])
        assert first == max(rows[row] for batch in batches if len(batch) == size for row in batch)
    assert batches == list(sampler)


@given(lengths, st.integers(1, 3), st.integers(1, 4), st.integers(0, 3))
def test_processes_share_the_batches_of_one(rows: list[int], each: int, processes: int, seed: int) -> None:
    one = list(BucketBatches(rows, each * processes, seed))
    several = [list(BucketBatches(rows, each * processes, seed, process=p, processes=processes)) for p in range(processes)]
    for batch, *shares in zip(one, *several, strict=True):
        assert all(shares), "a process without rows would leave the others waiting"
        assert {row for share in shares for row in share} == set(batch)
        if len(batch) >= processes:
            assert sum(map(len, shares)) == len(batch)


def test_epochs_and_seeds_differ() -> None:
    rows = [i % 7 + 1 for i in range(100)]
    orders = set()
    for seed in range(3):
        for epoch in range(3):
            sampler = BucketBatches(rows, 8, seed)
            sampler.set_epoch(epoch)
            orders.add(tuple(map(tuple, sampler)))
    assert len(orders) == 9


@pytest.mark.parametrize("size", [4, 16])
def test_padding_is_little(size: int) -> None:
    rng = random.Random(0)
    rows = [int(rng.lognormvariate(3, 0.6)) + 1 for _ in range(4000)]

    def padding(pool: int) -> float:
        batches = BucketBatches(rows, size, 0, pool=pool)
        return sum(max(rows[i] for i in batch) * len(batch) for batch in batches) / sum(rows) - 1

    assert padding(POOL) < 0.05
    assert padding(1) > 0.5  # and the pool is what does it


def test_lengths_are_those_of_the_rows_as_they_are_seen() -> None:
    rows = datasets.Dataset.from_dict({"input_ids": [[1, 2], [], [3, 4, 5], [6]], "row": [0, 1, 2, 3]})
    for seen in (rows, rows.select([3, 0, 2]), rows.filter(lambda row: row["row"] != 1)):
        assert lengths_of(seen) == [len(ids) for ids in seen["input_ids"]]
    assert lengths_of(rows.select_columns(["row"])) == [1] * 4
