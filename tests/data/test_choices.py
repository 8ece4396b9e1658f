"""Multiple choice: every way in which files write the choices and the right one."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from alloralib.data.choices import questions, with_indices
from alloralib.data.duplicates import find_repeats
from alloralib.data.forms import Columns
from alloralib.data.parts import load_parts
from alloralib.data.table import Table, read_table
from alloralib.errors import DataError

CHOICE = Columns.of("multiple-choice", {})


def of(*rows: tuple[Any, Any]) -> Table:
    choices, answers = zip(*rows, strict=True)
    columns = {"prompt": [f"p{i}" for i in range(len(rows))], "choices": list(choices), "answer": list(answers)}
    return Table("rows.csv", "0", columns, list(range(2, len(rows) + 2)))


def answers(table: Table) -> list[int]:
    return [question.answer for question in questions(table, CHOICE)]


COLORS = ["red", "green", "blue"]
WAYS: dict[str, tuple[list[Any], list[int]]] = {
    "texts": (["green", "blue"], [1, 2]),
    "texts with a space": (["green ", " blue"], [1, 2]),
    "letters": (["B", "C"], [1, 2]),
    "small letters": (["b", "c"], [1, 2]),
    "indices": ([1, 2], [1, 2]),
    "indices of a CSV file": (["1", "2"], [1, 2]),
    "indices of a column with gaps": ([1.0, 2.0], [1, 2]),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_right_choice_can_be_written_in_several_ways(way: str) -> None:
    given, expected = WAYS[way]
    table = of(*((COLORS, answer) for answer in given))
    assert answers(table) == expected
    assert answers(with_indices(table, CHOICE)) == expected


CELLS: dict[str, Any] = {
    "list": COLORS,
    "JSON": json.dumps(COLORS),
    "Python, as pandas writes it": str(COLORS),
    "names": {"A": "red", "B": "green", "C": "blue"},
    "names of Parquet": {"A": "red", "B": "green", "C": "blue", "D": None},
    "names as JSON": '{"A": "red", "B": "green", "C": "blue"}',
    "ARC": {"text": COLORS, "label": ["A", "B", "C"]},
    "ARC as pandas writes it": str({"text": COLORS, "label": ["A", "B", "C"]}),
}


@pytest.mark.parametrize("form", CELLS)
def test_choices_can_be_written_in_several_ways(form: str) -> None:
    (question,) = questions(of((CELLS[form], "B")), CHOICE)
    assert question.choices == tuple(COLORS)
    assert question.answer == 1


def test_names_count_before_texts_letters_and_indices() -> None:
    numbered = {"text": COLORS, "label": ["1", "2", "3"]}  # as 4 % of ARC's questions
    assert answers(of((numbered, "1"), (numbered, 3))) == [0, 2]
    assert answers(of(({"C": "red", "A": "green"}, "A"))) == [1]
    lettered = {"text": COLORS, "label": ["A", "B", "C"]}
    mixed = of((numbered, "1"), (lettered, "C"), (numbered, "2"))
    assert answers(mixed) == answers(with_indices(mixed, CHOICE)) == [0, 2, 1]


def test_the_exact_text_counts_before_letter_and_index() -> None:
    assert answers(of((["B", "A"], "A"), (["2", "0", "1"], "1"), (["1", "2"], "1"))) == [1, 2, 0]
    assert answers(of((["2", "0", "1"], 1))) == [1], "a number is an index: so has MMLU its answers"


def test_a_column_is_read_in_one_way() -> None:
    """In a column of indices, digits that are also the text of a choice are indices too."""
    column = of((COLORS, "2"), (["2", "0", "1"], "1"), (["5", "1", "6"], "0"))
    assert answers(with_indices(column, CHOICE)) == [2, 1, 0]
    letters = of((COLORS, "C"), (["C", "A", "B"], "A"))
    assert answers(with_indices(letters, CHOICE)) == [2, 0]
    sums = of((["1", "2", "3"], "2"), (["4", "0", "1"], "1"))
    assert answers(with_indices(sums, CHOICE)) == [1, 2]


@pytest.mark.parametrize("answer", ["D", "3", 3, -1, "-1", 0.5, True, None, "", "AB", "purple", ["red"]])
def test_other_answers_are_refused(answer: Any) -> None:
    for read in (questions, with_indices):
        with pytest.raises(
            DataError, match=r"row 2 \(line 3\): the answer .* is none of the 3 choices[\s\S]*its letter, or its"
        ):
            read(of((COLORS, "A"), (COLORS, answer)), CHOICE)


def test_answers_that_count_from_one_are_refused_and_said() -> None:
    """As in KMMLU. Read from 0, every answer would be the next choice."""
    for last in (3, "3"):
        with pytest.raises(DataError, match=r"row 2 .*none of the 3 choices[\s\S]*these answers seem to count from 1"):
            with_indices(of((COLORS, 1), (COLORS, last), (COLORS, 2)), CHOICE)


def test_the_rows_of_a_csv_file_are_read_as_a_column_in_every_part(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "choices", "answer"])
        for i in range(30):  # sums, whose choices are numbers that could be indices
            writer.writerow([f"{i} + 1 =", json.dumps([str(i), str(i + 1), str(i + 2)]), "1"])
    parts = load_parts("multiple-choice", CHOICE, data=str(path), validation_share=0.2)
    for part in (parts.train, parts.validation, parts.test):
        assert part is not None
        assert all(q.choices[q.answer] == str(int(q.prompt.split()[0]) + 1) for q in questions(part, CHOICE))
    assert answers(read_table(str(path)))[0] == 1


def test_equal_questions_with_different_answers_are_said() -> None:
    table = of((COLORS, "A"), (COLORS, "B"))
    table.columns["prompt"] = ["p", "P "]
    found = find_repeats("multiple-choice", table, CHOICE)
    assert (found.kept, found.conflicting, found.conflicts) == ([], 2, [[0, 1]])
