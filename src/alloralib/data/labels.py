"""The classes in a label column. A label has one form, wherever it comes from: `label_text`."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any

from ..errors import DataError, did_you_mean
from .table import Table

_WHOLE = re.compile(r"-?[0-9]{1,18}")
_DECIMAL = re.compile(r"(-?[0-9]{1,18}|-?)\.([0-9]+)")
_TRUTH = {"true": "true", "True": "true", "TRUE": "true", "false": "false", "False": "false", "FALSE": "false"}
_NO_LABEL = "-1"


def label_text(value: Any) -> str | None:
    """The one form of a label, equal for what a CSV file, JSON, Parquet and the hub write for the same class.

    Text is stripped and normalized (NFC). A number without a fraction is written as a whole number, as are texts such as
    "1.0", which pandas makes of a column with gaps. True, "True" (pandas) and "TRUE" (spreadsheets) are "true".

    Returns:
        None for no label: None, NaN, an empty text, and -1, which means that on the hub.

    Raises:
        ValueError: not a class: a fraction, an infinity, a list.

    >>> [label_text(value) for value in (" pos ", 1, 1.0, "1.0", True, "TRUE", -1, float("nan"), "")]
    ['pos', '1', '1', '1', 'true', 'true', None, None, None]
    """
    if isinstance(value, bool):
        return _TRUTH[str(value)]
    if isinstance(value, float | Decimal):
        if value != value:
            return None
        if abs(value) == float("inf") or value != int(value):
            raise ValueError("fraction")
        value = int(value)
    if value is not None and not isinstance(value, str | int):
        raise ValueError("several" if isinstance(value, list | tuple | dict) else "type")
    text = "" if value is None else unicodedata.normalize("NFC", str(value)).strip()
    if match := _DECIMAL.fullmatch(text):
        whole, fraction = match.groups()
        if fraction.strip("0"):
            raise ValueError("fraction")
        text = str(int(whole)) if _WHOLE.fullmatch(whole) else text
    text = _TRUTH.get(text, text)
    return None if text in ("", _NO_LABEL) else text


_REMEDIES = {
    "fraction": "classes are names or whole numbers: round it, or name it, such as v2.5; regression is not supported",
    "several": "give one class per row; several labels per row are not supported",
    "type": "write it as text or as a whole number",
}


def labels(table: Table, column: str) -> list[str]:
    """The label of every row in its one form.

    Raises:
        DataError: no such column, a row without a label, or with something that is not a class.
    """
    found: list[str] = []
    for row, value in enumerate(table.column(column, "label-column")):
        try:
            text = label_text(value)
        except ValueError as error:
            text, remedy = None, _REMEDIES[str(error)]
        else:
            remedy = "correct or remove the row, or name another --label-column"
            if str(value).strip().startswith(_NO_LABEL):
                remedy += "; -1 means no label: if it is a class, give it a name"
        if text is None:
            what = f"column {column!r} has no label but {repr(value)[:60]}"
            raise DataError(what, where=table.where(row), remedy=remedy)
        found.append(text)
    return found


def in_order(names: Iterable[str]) -> list[str]:
    """Different class names in an order that depends on nothing else: by value if all are numbers, else by code points.

    >>> in_order(["10", "-2", "9"]), in_order(["b", "10", "B", "9"])
    (['-2', '9', '10'], ['10', '9', 'B', 'b'])
    """
    different = sorted(set(names))
    return sorted(different, key=int) if all(_WHOLE.fullmatch(name) for name in different) else different


def label_names(table: Table, column: str, declared: tuple[str, ...] | None = None) -> list[str]:
    """The classes in the order of their indices: as declared, else by `in_order`.

    Args:
        declared: by a registered set.

    Raises:
        DataError: no such column, a row without a label, or fewer than two classes.
    """
    if declared is not None:
        return list(declared)
    names = in_order(labels(table, column))
    if len(names) < 2:
        what = f"column {column!r} holds one class only, {names[0]!r}"
        remedy = "give data with at least two classes, or name another --label-column"
        raise DataError(what, where=table.source, remedy=remedy)
    return names


def in_order_of_base(names: list[str], base: Sequence[str]) -> list[str]:
    """The classes in the base model's own order if they are its classes, so that its trained head keeps its meaning.

    Args:
        names: of the data.
        base: the base's classes in the order of its logits; empty if it has none.

    >>> in_order_of_base(["neg", "pos"], ["POS", "NEG"]), in_order_of_base(["a", "b"], ["pos", "neg"])
    (['pos', 'neg'], ['a', 'b'])
    """
    for form in (_form_of, lambda name: _form_of(name).casefold()):
        known = {form(name): name for name in names}
        order = [form(name) for name in base]
        if len(known) == len(names) == len(order) and set(order) == set(known):
            return [known[name] for name in order]
    return names


def are_classes_of_base(names: Sequence[str], base: Sequence[str]) -> bool:
    """Whether classes are those of the base model in its own order, case aside.

    >>> are_classes_of_base(["neg", "pos"], ["NEG", "POS"]), are_classes_of_base(["pos", "neg"], ["neg", "pos"])
    (True, False)
    """
    return [_form_of(name).casefold() for name in base] == [name.casefold() for name in names]


def label_ids(table: Table, column: str, names: list[str]) -> list[int]:
    """The index of every row's class in `names`.

    Raises:
        DataError: a label that is not in `names`.
    """
    known: dict[str, int] = {}
    for index, name in enumerate(names):
        known.setdefault(_form_of(name), index)  # names of older runs may have another form
    found = labels(table, column)
    for row, name in enumerate(found):
        if name not in known:
            rows = found.count(name)
            what = f"label {name!r} is none of the {len(names)} classes trained on ({rows:,} row{'s' if rows > 1 else ''})"
            remedy = f"{did_you_mean(name, names)}; else train on rows of that class too, or remove these"
            raise DataError(what, where=table.where(row), remedy=remedy)
    return [known[name] for name in found]


def label_notes(names: list[str], base: Sequence[str]) -> list[str]:
    """What to know about the classes: names that differ in case only, and how they relate to those of the base model.

    >>> label_notes(["Pos", "neg", "pos"], [])
    ["labels 'Pos' and 'pos' differ in case only, and are different classes"]
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.casefold(), []).append(name)
    notes = [
        f"labels {' and '.join(map(repr, group))} differ in case only, and are different classes"
        for group in groups.values()
        if len(group) > 1
    ]
    if base and [_form_of(name) for name in base] != names:
        about = "which differ in case only, in that order" if are_classes_of_base(names, base) else "so it gets a new head"
        notes.append(f"the model has own classes ({_some(base)}); the data has {_some(names)}, {about}")
    return notes


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _form_of(name: str) -> str:
    try:
        return label_text(name) or name
    except ValueError:
        return name
