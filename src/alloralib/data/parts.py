"""The training, validation and test rows of a run: three tables that share no example."""

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
"""What `Parts.removed` counts: repeated within train; in two parts (removed from the first); without a label."""


@dataclass(frozen=True)
class Parts:
    """The rows of a run.

    Attributes:
        train: rows to train on.
        validation: rows to choose the checkpoint on; None if there are none.
        test: rows for the final score.
        removed: the number of rows that were left out, by the names in `REMOVED`.
    """

    train: Table
    validation: Table | None
    test: Table
    removed: dict[str, int]


def load_parts(
    kind: Kind, columns: Columns, *, data: str, data_dir: str | Path | None = None,
    validation_data: str | None = None, validation_share: float | None = None,
    test_data: str | None = None, test_share: float | None = None, default_test_share: float = 0.1,
    train_rows: int | None = None, validation_rows: int | None = None, test_rows: int | None = None,
    data_seed: int = 0, evaluation_seed: int = 0,
) -> Parts:  # fmt: skip
    """Read the rows of a run; the same arguments give the same rows.

    A registered set brings its own validation and test parts, unless a share or other data is given. Without a test part,
    `default_test_share` of the training rows is held out. There are validation rows only if they are asked for or come
    with the set. An example that is in two parts is removed from the one that is used earlier: a test row is never trained
    or validated on, and given test rows are never changed. Rows of the same example stay together when a share is held
    out. `*_rows` are drawn last.

    Args:
        data: as for `read_table`, or the name of a registered set.
        data_dir: the directory with the files of registered sets; None for the hub.
        validation_data, test_data: like `data`; of a registered set, the part in question.
        validation_share, test_share: of the training rows without duplicates, in (0, 1).
        train_rows, validation_rows, test_rows: the largest number of rows.
        data_seed: seed of which `train_rows` are drawn.
        evaluation_seed: seed of which rows are held out, and of which `validation_rows` and `test_rows` are drawn.

    Raises:
        DataError: a part cannot be read, has a malformed row, or no row is left in it.
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
            remedy = f"give a file, or put {name}/{part}.jsonl in --data-dir"
            raise DataError(f"{name} has no {part} rows {where}", remedy=remedy)
        return _labelled(table, columns, removed)

    train = given(data, "train")
    test = given(test_data, "test") if test_data else own("test") if test_share is None else None
    validation = own("validation") if validation_share is None and not validation_data else None
    if validation_data:
        validation = given(validation_data, "validation")

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
    """At most `rows` rows, drawn by `seed`, in their original order."""
    if rows is None or rows >= len(table):
        return table
    return table.take(sorted(random.Random(seed).sample(range(len(table)), rows)))


def _labelled(table: Table, columns: Columns, removed: dict[str, int]) -> Table:
    """A registered set's rows without those that have no label."""
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
        what = f"every {earlier} row is also among the {later} rows"
        raise DataError(what, where=table.source, remedy=f"give other {later} rows")
    return table if len(rows) == len(table) else table.take(rows)


def _cut(table: Table, keys: list[str], shares: list[float], seed: int) -> list[Table]:
    """What is left of a table, and one part per share. Rows with the same key go into the same part.

    The first part does not depend on whether there is a second.
    """
    groups: dict[str, list[int]] = {}
    for row, key in enumerate(keys):
        groups.setdefault(key, []).append(row)
    if len(groups) <= len(shares):
        what = f"{len(groups)} different example(s) cannot be split into {len(shares) + 1} parts"
        raise DataError(what, where=table.source, remedy="give more rows, or --test-data and --validation-data")
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
