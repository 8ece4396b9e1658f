"""Multiple choice: a prompt, its choices, and which of them is right."""

from __future__ import annotations

import json
from dataclasses import dataclass
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
    return [_choices(cell, table.where(row)) for row, cell in enumerate(table.column(column, "choices-column"))]


def questions(table: Table, columns: Columns) -> list[Question]:
    """The rows of a multiple-choice table.

    Choices are a list of texts, written as a JSON list in a CSV cell. The answer is the text of the right choice or its
    0-based index as an integer.

    Raises:
        DataError: a missing column, fewer than two choices, equal choices, or an answer that is none of them.
    """
    assert columns.prompt is not None
    assert columns.choices is not None
    assert columns.answer is not None
    prompts = table.texts(columns.prompt, "prompt-column")
    cells = table.column(columns.choices, "choices-column")
    answers = table.column(columns.answer, "answer-column")
    rows: list[Question] = []
    for row, (prompt, cell, answer) in enumerate(zip(prompts, cells, answers, strict=True)):
        choices = _choices(cell, table.where(row))
        rows.append(Question(prompt, choices, _answer(answer, choices, table.where(row))))
    return rows


def _choices(cell: Any, where: str) -> tuple[str, ...]:
    if isinstance(cell, str):
        text = cell
        try:
            cell = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"the choices are not a JSON list: {error}", where=where, remedy=_EXAMPLE) from None
        refuse_half_characters(cell, text, where)
    if not isinstance(cell, list) or len(cell) < 2 or not all(isinstance(choice, str) and choice.strip() for choice in cell):
        what = f"expected at least two choices, each with text, got {str(cell)[:80]!r}"
        raise DataError(what, where=where, remedy=_EXAMPLE)
    if len(set(cell)) < len(cell):
        raise DataError("two choices are the same", where=where, remedy="remove one of them")
    return tuple(cell)


def _answer(answer: Any, choices: tuple[str, ...], where: str) -> int:
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
        return answer
    if isinstance(answer, str) and answer in choices:
        return choices.index(answer)
    remedy = "give the text of the right choice, or its index from 0 as a number; "
    remedy += did_you_mean(str(answer), [repr(choice)[1:-1] for choice in choices])
    raise DataError(f"the answer {answer!r} is none of the {len(choices)} choices", where=where, remedy=remedy)
