"""The classes in a label column."""

from __future__ import annotations

from ..errors import DataError, did_you_mean
from .table import Table


def labels(table: Table, column: str) -> list[str]:
    """The label of every row as text.

    Raises:
        DataError: no such column, or a row without a label (None, an empty text, or -1, which means that on the hub).
    """
    values = table.column(column, "label-column")
    for row, value in enumerate(values):
        if value is None or not isinstance(value, str | int) or str(value).strip() in ("", "-1"):
            remedy = "correct or remove the row, or name another --label-column; if -1 is a class, give it a name"
            raise DataError(f"column {column!r} has no label but {value!r}", where=table.where(row), remedy=remedy)
    return [str(value) for value in values]


def label_names(table: Table, column: str, declared: tuple[str, ...] | None = None) -> list[str]:
    """The classes in the order of their indices: as declared, else sorted (numbers by their value).

    Args:
        declared: by a registered set.

    Raises:
        DataError: no such column, a row without a label, or fewer than two classes.
    """
    if declared is not None:
        return list(declared)
    found = set(labels(table, column))
    names = sorted(found, key=int) if all(name.isdecimal() for name in found) else sorted(found)
    if len(names) < 2:
        what = f"column {column!r} holds one class only, {names[0]!r}"
        remedy = "give data with at least two classes, or name another --label-column"
        raise DataError(what, where=table.source, remedy=remedy)
    return names


def label_ids(table: Table, column: str, names: list[str]) -> list[int]:
    """The index of every row's class in `names`.

    Raises:
        DataError: a label that is not in `names`.
    """
    known = {name: index for index, name in enumerate(names)}
    found = labels(table, column)
    for row, name in enumerate(found):
        if name not in known:
            what = f"label {name!r} is none of the {len(names)} classes trained on"
            raise DataError(what, where=table.where(row), remedy=did_you_mean(name, names))
    return [known[name] for name in found]
