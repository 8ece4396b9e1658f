"""tests/cases.md: every fault in the table has a test, and every test that it names exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
REFERENCE = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")


def rows(text: str) -> list[list[str]]:
    """The cells of every row of every table; a bar behind a backslash is part of a cell."""
    lines = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| report ")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def missing(text: str, root: Path) -> list[str]:
    """The rows without a test, and the tests that do not exist."""
    found = [row[0] for row in rows(text) if not REFERENCE.search(row[3])]
    for file, test in REFERENCE.findall(text):
        path = root / file
        if not path.is_file() or (test and not re.search(rf"^def {test}\(", path.read_text(encoding="utf-8"), re.M)):
            found.append(f"{file}::{test}")
    return found


def test_every_fault_has_a_test_that_exists() -> None:
    text = (ROOT / "tests" / "cases.md").read_text(encoding="utf-8")
    assert missing(text, ROOT) == []
    assert {len(row) for row in rows(text)} == {4}
    assert len(rows(text)) >= 150


def test_a_row_without_a_test_and_a_test_that_does_not_exist_are_found(tmp_path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_a.py").write_text("def test_one() -> None: ...\n")
    text = (
        "| report | what happens there | before | tests |\n|---|---|---|---|\n| x#1 | a | b | `tests/test_a.py::test_one` |\n"
        "| x#2 | a | b | - |\n| x#3 | a | b | `tests/test_a.py::test_two`, `tests/test_b.py` |\n"
    )
    assert missing(text, tmp_path) == ["x#2", "tests/test_a.py::test_two", "tests/test_b.py::"]
