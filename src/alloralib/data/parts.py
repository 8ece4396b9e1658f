"""Rows to train on, to choose a checkpoint by, and to test on: three tables that share no example."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError
from .duplicates import example_keys, row_keys
from .forms import Columns, Kind
from .registered import read_part
from .registry import REGISTRY, Part
from .table import Table, read_table

REMOVED = ("train", "train/test", "train/validation", "validation/test", "unlabelled")
"""What `Parts.removed` counts: repeated within train; in both parts (the row of the first goes); without a label."""


@dataclass(frozen=True)
class Parts:
    """The rows of a run.

    Attributes:
        train: to learn from.
        validation: to choose the checkpoint by, None where there are none.
        test: for the final score.
        removed: rows that were left out, by the names in `REMOVED`; zero where none were.
    """

    train: Table
    validation: Table | None
    test: Table
    removed: dict[str, int]


def load_parts(
    kind: Kind,
    columns: Columns,
    *,
    data: str,
    data_dir: str | Path | None = None,
    validation_data: str | None = None,
    validation_share: float | None = None,
    test_data: str | None = None,
    test_share: float | None = None,
    default_test_share: float = 0.1,
    train_rows: int | None = None,
    validation_rows: int | None = None,
    test_rows: int | None = None,
    data_seed: int = 0,
    evaluation_seed: int = 0,
) -> Parts:
    """Read the rows of a run; the same arguments give the same rows.

    A registered set brings its own validation and test parts, unless a share or other data is given. Where there is no
    test part, `default_test_share` of the training rows is held out; validation rows there are only where they are asked
    for or brought along. What stands in two parts is removed from the one that is used earlier: a test row is never
    trained or validated on, and given test rows stay as they are. Rows that show the same example stay together when a
    share is cut. `*_rows` are drawn last.

    Args:
        data: as for `read_table`, or a registered name.
        data_dir: where the files of registered sets are; None for the hub.
        validation_data, test_data: as `data`; of a registered name the part in question.
        validation_share, test_share: of the training rows without their duplicates, in (0, 1).
        train_rows, validation_rows, test_rows: at most so many.
        data_seed: of the choice of `train_rows`.
        evaluation_seed: of which rows are held out, and of the choice of `validation_rows` and `test_rows`.

    Raises:
        DataError: a part cannot be read, has a malformed row, or nothing is left of it.
    """
    removed: dict[str, int] = dict.fromkeys(REMOVED, 0)

    def own(part: Part) -> Table | None:
        table = read_part(data, part, data_dir) if data in REGISTRY else None
        return None if table is None else _labelled(table, columns, removed)

    def given(name: str, part: Part) -> Table:
        if name not in REGISTRY:
            return read_table(name)
        table = read_part(name, part, data_dir)
        if table is None:
            where = "on the hub" if data_dir is None else f"in {data_dir}"
            raise DataError(
                f"{name} has no {part} rows {where}", remedy=f"give a file, or put {name}/{part}.jsonl in --data-dir"
            )
        return _labelled(table, columns, removed)

    train = given(data, "train")
    test = given(test_data, "test") if test_data else own("test") if test_share is None else None
    validation = (
        given(validation_data, "validation") if validation_data else own("validation") if validation_share is None else None
    )

    def keys(table: Table) -> list[str]:
        return example_keys(kind, table, columns)

    if test is not None and validation is not None:
        validation = _without(validation, keys(validation), set(keys(test)), removed, "validation/test")
    if test is not None:
        train = _without(train, keys(train), set(keys(test)), removed, "train/test")
    if validation is not None:
        train = _without(train, keys(train), set(keys(validation)), removed, "train/validation")
    first = {key: row for row, key in reversed(list(enumerate(row_keys(kind, train, columns))))}
    removed["train"] = len(train) - len(first)
    train = train.take(sorted(first.values()))

    shares: list[float] = []
    if test is None:
        shares.append(default_test_share if test_share is None else test_share)
    if validation is None and validation_share is not None:
        shares.append(validation_share)
    if shares:
        train, *cut = _cut(train, keys(train), shares, evaluation_seed)
        if test is None:
            test, *cut = cut
        validation = cut[0] if cut else validation
    assert test is not None
    return Parts(
        sample(train, train_rows, data_seed),
        None if validation is None else sample(validation, validation_rows, evaluation_seed),
        sample(test, test_rows, evaluation_seed),
        removed,
    )


def sample(table: Table, rows: int | None, seed: int) -> Table:
    """At most `rows` rows, chosen by `seed`, in their old order."""
    if rows is None or rows >= len(table):
        return table
    return table.take(sorted(random.Random(seed).sample(range(len(table)), rows)))


def _labelled(table: Table, columns: Columns, removed: dict[str, int]) -> Table:
    """A registered set's rows without those that the set gives no label."""
    values = table.columns.get(columns.label or columns.answer or "")
    if values is None or None not in values:
        return table
    rows = [row for row, value in enumerate(values) if value is not None]
    removed["unlabelled"] += len(table) - len(rows)
    if not rows:
        raise DataError("no row has a label", where=table.source, remedy="give other data for this part")
    return table.take(rows)


def _without(table: Table, keys: list[str], held: set[str], removed: dict[str, int], pair: str) -> Table:
    rows = [row for row, key in enumerate(keys) if key not in held]
    removed[pair] = len(table) - len(rows)
    if not rows:
        earlier, later = pair.split("/")
        raise DataError(
            f"every {earlier} row also stands in the {later} rows", where=table.source, remedy=f"give other {later} rows"
        )
    return table if len(rows) == len(table) else table.take(rows)


def _cut(table: Table, keys: list[str], shares: list[float], seed: int) -> list[Table]:
    """What is left of a table, and a part per share; rows with the same key come into the same part.

    The first part does not depend on whether a second is cut.
    """
    groups: dict[str, list[int]] = {}
    for row, key in enumerate(keys):
        groups.setdefault(key, []).append(row)
    if len(groups) <= len(shares):
        raise DataError(
            f"{len(groups)} different example(s) cannot be split into {len(shares) + 1} parts",
            where=table.source,
            remedy="give more rows, or --test-data and --validation-data",
        )
    order = list(groups.values())
    random.Random(seed).shuffle(order)
    order.reverse()  # taken from the end, which costs nothing
    parts: list[Table] = []
    for cut, share in enumerate(shares):
        spare = len(shares) - cut  # a group for each part that follows, the training rows among them
        rows: list[int] = []
        while len(order) > spare and len(rows) < max(1, round(share * len(table))):
            rows += order.pop()
        parts.append(table.take(sorted(rows)))
    return [table.take(sorted(row for group in order for row in group)), *parts]
