"""Held-out rows: chosen by a seed of their own, and never also trained on."""

from __future__ import annotations

import random
from dataclasses import dataclass

from ..errors import DataError
from .table import Table


@dataclass(frozen=True)
class Split:
    """Rows to train on, rows to evaluate on, and how many were left out because they stand in both or twice."""

    train: Table
    evaluation: Table
    duplicates_removed: int


def split_table(table: Table, keys: list[str], held_out: float, seed: int) -> Split:
    """Hold out a share of a table.

    Rows whose key stands in an earlier row are left out first, so that no evaluation row is also trained on.

    Args:
        table: all rows.
        keys: one string per row; equal strings are the same example.
        held_out: share of the rows, in (0, 1); at least one row on either side.
        seed: of the choice.

    Raises:
        DataError: fewer than two different rows.
    """
    first: dict[str, int] = {}
    for row, key in enumerate(keys):
        first.setdefault(key, row)
    rows = list(first.values())
    if len(rows) < 2:
        raise DataError(
            f"{len(rows)} different row(s) cannot be split", where=table.source, remedy="give more rows, or --evaluation-data"
        )
    random.Random(seed).shuffle(rows)
    count = min(max(1, round(held_out * len(rows))), len(rows) - 1)
    return Split(table.take(sorted(rows[count:])), table.take(sorted(rows[:count])), len(keys) - len(rows))


def drop_overlap(train: Table, train_keys: list[str], evaluation: Table, evaluation_keys: list[str]) -> Split:
    """Leave out of `train` what also stands in a given evaluation table."""
    held = set(evaluation_keys)
    rows = [row for row, key in enumerate(train_keys) if key not in held]
    if not rows:
        raise DataError(
            "every training row also stands in the evaluation data", where=train.source, remedy="give other evaluation data"
        )
    return Split(train.take(rows), evaluation, len(train_keys) - len(rows))


def sample(table: Table, rows: int | None, seed: int) -> Table:
    """At most `rows` rows, chosen by `seed`, in their old order."""
    if rows is None or rows >= len(table):
        return table
    return table.take(sorted(random.Random(seed).sample(range(len(table)), rows)))
