"""Batches of rows of similar length, in an order that depends on seed and epoch alone.

Private API used here: transformers' Trainer accepts a batch sampler from `_get_train_sampler` only if it is a
`BatchRebalanceSampler`, a class that knows its own process. Ours subclasses it and does all batching itself.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pyarrow.compute as pc
import torch
from transformers.trainer_pt_utils import BatchRebalanceSampler

POOL = 200
"""Batches that are sorted by length together: large enough that padding adds less than 5 % on the registered sets
(`benchmarks/padding.py`), small enough for a random order."""


class BucketBatches(BatchRebalanceSampler):
    """The batches of one process.

    Rows are shuffled, sorted by length within pools of `pool` batches and cut into batches, which are shuffled. The batch
    with the longest row comes first, so that memory runs out at once or never. Rows of equal length stay in random order,
    so the batches of an epoch differ from those of the one before. Each process takes its share of every batch, so the
    rows of a step do not depend on the number of processes. If the last batch of an epoch has fewer rows than there are
    processes, some processes repeat a row of it, so that all of them make the same calls.

    transformers' own samplers draw from torch's global generator, as do the adapter's initial values and dropout: the
    order of the rows would depend on the method.

    Args:
        lengths: tokens per row; equal lengths give a plain shuffle.
        batch_size: rows per forward pass, over all processes.
        seed: of the order.
        process, processes: index of this process and number of processes.
        pool: batches that are sorted by length together.

    Attributes:
        repeated: the row of this epoch that this process repeats and another one counts, None if there is none (yet).
    """

    def __init__(
        self, lengths: list[int], batch_size: int, seed: int, *, process: int = 0, processes: int = 1, pool: int = POOL
    ) -> None:
        self.lengths, self.rows, self.seed, self.epoch = lengths, batch_size, seed, 0
        self.batch_size = None  # with a number, accelerate would fill a process's share up to it
        self.process, self.processes, self.pool = process, processes, pool
        self.repeated: int | None = None

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose batches come next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.rows)

    def __iter__(self) -> Generator[list[int], None, None]:
        self.repeated = None
        for batch in self.global_batches():
            own = batch[self.process :: self.processes]
            if not own:
                self.repeated = batch[0]
            yield own or batch[:1]

    def global_batches(self) -> list[list[int]]:
        """The batches over all processes, as row numbers."""
        generator = torch.Generator().manual_seed(self.seed * 2**20 + self.epoch)
        rows: list[int] = torch.randperm(len(self.lengths), generator=generator).tolist()
        pool = self.pool * self.rows
        ordered: list[int] = []
        for start in range(0, len(rows), pool):
            ordered += sorted(rows[start : start + pool], key=self.lengths.__getitem__, reverse=True)
        batches = [ordered[start : start + self.rows] for start in range(0, len(ordered), self.rows)]
        # an incomplete batch stays last, where a step of several batches expects it
        whole = batches[:-1] if len(batches[-1]) < self.rows else batches
        shuffled = [whole[i] for i in torch.randperm(len(whole), generator=generator).tolist()]
        longest = max(self.lengths)
        shuffled.sort(key=lambda batch: self.lengths[batch[0]] < longest)  # stable: the longest first
        return shuffled + batches[len(whole) :]


def lengths_of(dataset: Any) -> list[int]:
    """Tokens of every row of a data set; 1 each if it has no column `input_ids`."""
    if "input_ids" not in dataset.column_names:
        return [1] * len(dataset)
    column = dataset.select_columns(["input_ids"]).with_format("arrow")[:]["input_ids"]
    return pc.list_value_length(column).to_pylist()  # pyright: ignore[reportAttributeAccessIssue] (made at import)
