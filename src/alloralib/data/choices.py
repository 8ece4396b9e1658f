"""Multiple choice: a prompt, its choices, and which of them is right."""

from __future__ import annotations

import ast
import json
import re
import string
from dataclasses import dataclass, replace
from typing import Any

from ..errors import DataError, did_you_mean
from .forms import Columns
from .readers import refuse_half_characters
from .table import Table

_EXAMPLE = 'write them as ["one choice", "another"]'


@dataclass(frozen=True)
class Question:
    """One row: the model reads `prompt` and continues it with one of `choices`. `answer` is the index of the right one."""

    prompt: str
    choices: tuple[str, ...]
    answer: int


def choice_lists(table: Table, column: str) -> list[tuple[str, ...]]:
    """The choices of every row, without an answer. Raises `DataError` as `questions` does."""
    return [_named_choices(cell, table.where(row))[1] for row, cell in enumerate(table.column(column, "choices-column"))]


def questions(table: Table, columns: Columns) -> list[Question]:
    """The rows of a multiple-choice table.

    Choices are a list of texts (written as a JSON or Python list in a CSV cell), a dictionary of texts by their names, or
    {"text": [...], "label": [...]}, as ARC has them on the hub. The answer is a name, the text of the right choice, its letter
    (A is the first), or its index from 0. Where several of these would fit, the first of them in this order counts;
    `with_indices` decides for a whole column.

    Raises:
        DataError: a missing column, fewer than two choices, equal choices, or an answer that is none of them.
    """
    assert columns.prompt is not None
    prompts = table.texts(columns.prompt, "prompt-column")
    rows = zip(prompts, _readings(table, columns), strict=True)
    return [
        Question(prompt, choices, _first(readings, choices, answer, table.where(row)))
        for row, (prompt, (choices, answer, readings)) in enumerate(rows)
    ]


def with_indices(table: Table, columns: Columns) -> Table:
    """The table with choices as lists and every answer as an index, read in the way that fits the whole column.

    "1" is the text of a choice if every answer of the column is the text of one of its choices, else an index if that fits
    every answer. A column that no single way fits is read row by row, as `questions` does.

    Raises:
        DataError: as for `questions`.
    """
    assert columns.choices is not None
    assert columns.answer is not None
    rows = _readings(table, columns)
    way = next((way for way in range(_WAYS) if all(readings[way] is not None for _, _, readings in rows)), None)
    found = [
        readings[way] if way is not None else _first(readings, choices, answer, table.where(row))
        for row, (choices, answer, readings) in enumerate(rows)
    ]
    choices = [list(choices) for choices, _, _ in rows]  # without names, of which a number could be one
    return replace(table, columns=table.columns | {columns.choices: choices, columns.answer: found})


_WAYS = 4
_Readings = tuple[int | None, ...]  # the index by name, by text, by letter and by number; None where that does not fit


def _readings(table: Table, columns: Columns) -> list[tuple[tuple[str, ...], Any, _Readings]]:
    """Choices, answer and ways to read it of every row."""
    assert columns.choices is not None
    assert columns.answer is not None
    cells = table.column(columns.choices, "choices-column")
    answers = table.column(columns.answer, "answer-column")
    found: list[tuple[tuple[str, ...], Any, _Readings]] = []
    for row, (cell, answer) in enumerate(zip(cells, answers, strict=True)):
        names, choices = _named_choices(cell, table.where(row))
        found.append((choices, answer, _ways(answer, names, choices)))
    return found


def _ways(answer: Any, names: tuple[str, ...], choices: tuple[str, ...]) -> _Readings:
    number = letter = text = name = None
    if isinstance(answer, str):
        bare = answer.strip()
        name = names.index(bare) if bare in names else None
        text = choices.index(answer) if answer in choices else choices.index(bare) if bare in choices else None
        letter = (
            string.ascii_uppercase.index(bare.upper()) if len(bare) == 1 and bare.upper() in string.ascii_uppercase else None
        )
        number = int(bare) if re.fullmatch(r"[0-9]{1,4}", bare) else None
    elif isinstance(answer, int | float) and not isinstance(answer, bool) and answer == answer // 1:
        number = int(answer)
        name = names.index(str(number)) if str(number) in names else None
    letter, number = (way if way is not None and 0 <= way < len(choices) else None for way in (letter, number))
    return name, text, letter, number


def _first(readings: _Readings, choices: tuple[str, ...], answer: Any, where: str) -> int:
    found = next((index for index in readings if index is not None), None)
    if found is None:
        remedy = "give the text of the right choice, its letter, or its index from 0; "
        if str(answer).strip() == str(len(choices)):
            remedy += "these answers seem to count from 1; "
        remedy += did_you_mean(str(answer), [repr(choice)[1:-1] for choice in choices])
        raise DataError(f"the answer {answer!r} is none of the {len(choices)} choices", where=where, remedy=remedy)
    return found


def _named_choices(cell: Any, where: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of the choices, empty if they have none, and their texts."""
    if isinstance(cell, str):
        text = cell
        try:
            cell = json.loads(text)
            refuse_half_characters(cell, text, where)
        except (ValueError, RecursionError) as error:
            if isinstance(error, DataError):
                raise
            cell = _python_list(text)
            if cell is None:
                raise DataError(f"the choices are not a JSON list: {error}", where=where, remedy=_EXAMPLE) from None
    names: list[Any] = []
    if isinstance(cell, dict) and set(cell) == {"text", "label"}:
        names, cell = list(cell["label"]), list(cell["text"])
    elif isinstance(cell, dict):
        cell = {name: choice for name, choice in cell.items() if choice is not None}  # Parquet gives every row all names
        names, cell = list(cell), list(cell.values())
    if not isinstance(cell, list) or len(cell) < 2 or not all(isinstance(choice, str) and choice.strip() for choice in cell):
        what = f"expected at least two choices, each with text, got {str(cell)[:80]!r}"
        raise DataError(what, where=where, remedy=_EXAMPLE)
    if len(set(cell)) < len(cell):
        raise DataError("two choices are the same", where=where, remedy="remove one of them")
    return tuple(map(str, names)), tuple(cell)


def _python_list(text: str) -> Any:
    """A list as pandas writes it into a CSV cell: with Python's quotes."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None
