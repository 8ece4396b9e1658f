"""Predictions as lines of CSV or JSON."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any

from ..errors import DataError
from ..files import finite

if TYPE_CHECKING:
    from ..evaluation.prediction import Prediction

FORMATS = ("csv", "jsonl")
_LINE_ENDS = {ord(mark): f"\\u{ord(mark):04x}" for mark in "\x85\u2028\u2029"}
"""What Unicode takes for the end of a line, and JSON does not escape."""


class PredictionWriter:
    """Writes a line per row: `row` (its number from 0), the columns that are kept, and what was predicted.

    An answer is in `answer`. Of a class or choice there are `predicted` and its `probability`, and then

    jsonl   `probabilities`: an object by class, in the order of the classes; with `top` the most probable ones, best first
    csv     `probability_CLASS` for every class; with `top` `predicted_2`, `probability_2` and so on; for choices, which
            are others in every row, `probabilities`: the JSON object

    A column that is kept and has one of these names is called `input_` and its name. The file's write method is called once
    per chunk, so that nothing is left in a buffer.

    Args:
        file: to write text to; with newline="" for a CSV file.
        form: one of `FORMATS`.
        keep: columns of the rows to copy.
        top: write only the `top` most probable classes.
        choices: every row has classes of its own.
    """

    def __init__(self, file: IO[str], form: str, keep: Sequence[str], *, top: int | None = None, choices: bool = False) -> None:
        self.file, self.form, self.keep, self.top, self.choices = file, form, keep, top, choices
        self._csv = csv.writer(file, lineterminator="\n")
        self._names: dict[str, str] | None = None

    def write(self, number: int, cells: Mapping[str, Any], predicted: Prediction | str) -> None:
        """Write the line of a row.

        Args:
            number: of the row.
            cells: of the row, by column.
            predicted: its class and probabilities, or its answer.

        Raises:
            DataError: a cell to be kept holds bytes.
        """
        fields: dict[str, Any] = {"answer": predicted} if isinstance(predicted, str) else self._fields(predicted)
        is_first = self._names is None
        if self._names is None:
            self._names = output_names(self.keep, ["row", *fields])
        line = {"row": number} | {self._names[name]: finite(cells[name]) for name in self.keep} | fields
        if self.form == "jsonl":
            self.file.write(json.dumps(line, ensure_ascii=False, default=_text).translate(_LINE_ENDS) + "\n")
            return
        if is_first:
            self._csv.writerow(line)
        self._csv.writerow([_cell(value) for value in line.values()])

    def _fields(self, predicted: Prediction) -> dict[str, Any]:
        shown = {name: float(f"{p:.9g}") for name, p in predicted.probabilities.items()}  # all digits of a float32
        fields: dict[str, Any] = {"predicted": predicted.label, "probability": shown[predicted.label]}
        if self.top is not None:
            shown = dict(sorted(shown.items(), key=lambda item: -item[1])[: self.top])
        if self.form == "jsonl" or self.choices:
            return fields | {"probabilities": shown}
        if self.top is None:
            return fields | {f"probability_{name}": p for name, p in shown.items()}
        for rank, (name, p) in list(enumerate(shown.items(), start=1))[1:]:
            fields |= {f"predicted_{rank}": name, f"probability_{rank}": p}
        return fields


def output_names(keep: Sequence[str], own: Sequence[str]) -> dict[str, str]:
    """The name in the output of every column that is kept: its own, unless the output has a column of that name.

    >>> output_names(["id", "predicted"], ["row", "predicted"])
    {'id': 'id', 'predicted': 'input_predicted'}
    """
    names = {name: name for name in keep if name not in own}
    for name in keep:
        if name in own:
            free = f"input_{name}"
            while free in own or free in names.values():
                free = f"input_{free}"
            names[name] = free
    return names


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=_text)


def _text(value: Any) -> str:
    """What JSON does not know: dates and decimals as text."""
    if isinstance(value, bytes):
        remedy = "name the columns to keep, without this one"
        raise DataError("a column to keep holds bytes, which CSV and JSON cannot hold", where="--keep", remedy=remedy)
    return str(value)
