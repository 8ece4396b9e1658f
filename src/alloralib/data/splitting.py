"""Which rows of a table are held out or drawn: decided by a seed, with every class in its share where classes are given."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Literal

from ..errors import DataError
from .table import Table

HeldOut = Literal["stratified", "random"]
"""Whether the rows that are held out or drawn have every class in its share."""


def sample(table: Table, rows: int | None, seed: int, classes: Sequence[str] | None = None, *, each: bool = False) -> Table:
    """At most `rows` rows, drawn by `seed`, in their original order.

    Args:
        classes: (N,), the class of each row; every class then has its share of what is drawn.
        each: with classes: at least one row of each, if `rows` is not smaller than their number.
    """
    if rows is None or rows >= len(table):
        return table
    if classes is None:
        return table.take(sorted(random.Random(seed).sample(range(len(table)), rows)))
    members = _shuffled(classes, seed)
    least = 1 if each and rows >= len(members) else 0
    spare = {name: len(rows) - least for name, rows in members.items()}
    taken = quotas(spare, rows - least * len(members), spare)
    return table.take(sorted(row for name, rows in members.items() for row in rows[: taken[name] + least]))


def cut_groups(table: Table, keys: list[str], shares: list[float], seed: int) -> list[Table]:
    """What is left of a table, and one part per share. Rows with the same key go into the same part.

    The first part does not depend on whether there is a second.

    Raises:
        DataError: fewer groups than parts.
    """
    groups: dict[str, list[int]] = {}
    for row, key in enumerate(keys):
        groups.setdefault(key, []).append(row)
    _check_enough(table, len(groups), shares)
    order = list(groups.values())
    random.Random(seed).shuffle(order)
    order.reverse()  # popped from the end, which is cheap
    parts: list[Table] = []
    for cut, share in enumerate(shares):
        spare = len(shares) - cut  # one group for each part that follows, training included
        rows: list[int] = []
        while len(order) > spare and len(rows) < max(1, round(share * len(table))):
            rows += order.pop()
        parts.append(table.take(sorted(rows)))
    return [table.take(sorted(row for group in order for row in group)), *parts]


def cut_classes(table: Table, classes: Sequence[str], shares: list[float], seed: int) -> list[Table]:
    """What is left of a table, and one part per share that has the same share of every class, as far as rows can be divided.

    A row of every class is left, so a class with one row is held out only if no class has two. The first part does not
    depend on whether there is a second.

    Args:
        classes: (N,), the class of each row. No two rows are the same example.

    Raises:
        DataError: fewer rows than parts.
    """
    _check_enough(table, len(table), shares)
    members = _shuffled(classes, seed)
    parts: list[Table] = []
    for cut, share in enumerate(shares):
        later = len(shares) - cut - 1  # parts that need a row too
        counts = {name: len(rows) for name, rows in members.items()}
        spare = {name: count - 1 for name, count in counts.items()}
        total = max(1, min(round(share * len(table)), sum(spare.values()) - later))
        if not any(spare.values()):
            spare = counts
        taken = quotas(counts, total, spare)
        parts.append(table.take(sorted(members[name].pop() for name in members for _ in range(taken[name]))))
        members = {name: rows for name, rows in members.items() if rows}
    return [table.take(sorted(row for rows in members.values() for row in rows)), *parts]


def quotas(counts: Mapping[str, int], total: int, most: Mapping[str, int]) -> dict[str, int]:
    """How many to take of every class, `total` in all: in proportion to `counts` (largest remainders), at most `most`.

    >>> quotas({"a": 70, "b": 29, "c": 1}, 10, {"a": 69, "b": 28, "c": 0})
    {'a': 7, 'b': 3, 'c': 0}
    """
    rows = sum(counts.values())
    taken = {name: min(total * count // max(rows, 1), most[name]) for name, count in counts.items()}
    while (missing := total - sum(taken.values())) > 0:
        open_names = [name for name in counts if taken[name] < most[name]]
        if not open_names:
            break
        open_names.sort(key=lambda name: taken[name] * rows - total * counts[name])  # exact: what is still owed, most first
        for name in open_names[:missing]:
            taken[name] += 1
    return taken


def _shuffled(classes: Sequence[str], seed: int) -> dict[str, list[int]]:
    """The rows of every class, and the classes, in an order that the seed decides."""
    order = list(range(len(classes)))
    random.Random(seed).shuffle(order)
    members: dict[str, list[int]] = {}
    for row in order:
        members.setdefault(classes[row], []).append(row)
    return members


def _check_enough(table: Table, examples: int, shares: list[float]) -> None:
    if examples <= len(shares):
        what = f"{examples} different example(s) cannot be split into {len(shares) + 1} parts"
        raise DataError(what, where=table.source, remedy="give more rows, or --test-data and --validation-data")
