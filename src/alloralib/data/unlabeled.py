"""Rows without answers, read in chunks: what a model is asked, never what it should say."""

from __future__ import annotations

import csv
import json
import math
import shutil
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import ConfigError, DataError, did_you_mean
from .choices import choice_lists
from .forms import Columns, Kind, flag
from .images import image_sources
from .readers import IMAGES, file_format, iterate_rows, text_lines
from .registered import read_part
from .registry import REGISTRY, Part
from .table import Table, read_table

INPUTS: dict[Kind, tuple[str, ...]] = {
    "classification": ("text", "text_pair"),
    "image-classification": ("image",),
    "causal-lm": ("prompt", "text"),
    "chat": ("messages", "prompt"),
    "multiple-choice": ("prompt", "choices"),
}
"""The parts of a row that a model of each kind is given. causal-lm and chat take one of the two."""

INPUT_FORMATS = ("lines", "csv", "tsv", "jsonl", "json")
"""What standard input may hold."""

STANDARD_INPUT = "standard input"
_EITHER: tuple[Kind, ...] = ("causal-lm", "chat")
_SNIFFED = 65_536  # bytes at the start of standard input that are looked at to tell its format


@dataclass(frozen=True)
class Unlabeled:
    """Rows to predict, which can be read again and again.

    Attributes:
        source: the file, directory or set.
        rows: starts to read; yields the line (None if the source has no lines) and the cells of each row.
        is_directory: of images.
    """

    source: str
    rows: Callable[[], Iterator[tuple[int | None, dict[str, Any]]]]
    is_directory: bool = False

    def chunks(self, size: int) -> Iterator[Table]:
        """Tables of at most `size` rows, in the order of the source. Each row knows its number in the source."""
        names: dict[str, None] = {}  # a column that has begun goes on, with None where a row does not have it
        rows = ((number, line, row) for number, (line, row) in enumerate(self.rows()))
        while chunk := list(islice(rows, size)):
            names |= dict.fromkeys(name for _, _, row in chunk for name in row)
            lines = [line for _, line, _ in chunk if line is not None]
            columns = {name: [row.get(name) for _, _, row in chunk] for name in names}
            yield Table(self.source, "", columns, lines or None, [number for number, _, _ in chunk])


def without_empty(table: Table, columns: Columns) -> Table:
    """The rows that have something in every column that the model is given."""
    cells = [table.columns[name] for name in columns.named().values() if name in table.columns]
    full = [row for row in range(len(table)) if not any(_is_empty(values[row]) for values in cells)]
    return table if len(full) == len(table) else table.take(full)


def _is_empty(cell: Any) -> bool:
    return cell is None or (isinstance(cell, float) and math.isnan(cell)) or (isinstance(cell, str) and not cell.strip())


def open_unlabeled(
    data: str, kind: Kind, columns: Mapping[str, str], *, split: Part | None = None, data_dir: str | None = None
) -> Unlabeled:
    """The rows of a source.

    Args:
        data: a file in a format of `readers`, a text file (.txt, also with .gz) with one text per line, an image, a
            directory of images, or a registered, bundled or hub set.
        kind, columns: of the run; a line of a text file goes into the one column that they need.
        split: part of a registered set; by default test.
        data_dir: where registered sets are read from.

    Raises:
        ConfigError: lines for a run that needs several columns, images for a run that reads texts, or a part of a file.
        DataError: no such source.
    """
    path = Path(data)
    if data in REGISTRY:
        table = read_part(data, split or "test", data_dir)
        if table is None:
            raise DataError(f"{data} has no {split or 'test'} rows", remedy="choose another --split, or give a file")
        return _of_table(table)
    if split is not None:
        raise ConfigError("a split is for a registered set", where=data, remedy="leave --split out: all rows are used")
    holds_tables = path.is_dir() and any(file_format(file) == ".parquet" for file in path.iterdir())
    if (path.is_dir() and not holds_tables) or path.suffix.lower() in IMAGES:
        if kind != "image-classification":
            raise ConfigError(f"images, but the run's task is {kind}", where=data, remedy="give a file of texts")
        column = columns.get("image", "image")
        names = _image_files(path) if path.is_dir() else [path.name]
        return Unlabeled(data, lambda: ((None, {column: name}) for name in names), is_directory=path.is_dir())
    is_text = Path(path.name.lower().removesuffix(".gz")).suffix == ".txt"
    if is_text and path.is_file():
        column = _only_column(kind, columns, data)
        return Unlabeled(data, lambda: _lines(path, column))
    if is_text:
        raise DataError("no such file", where=data, remedy="check the path")
    if path.is_file() and file_format(path) not in (None, ".parquet"):
        return Unlabeled(data, lambda: iter(iterate_rows(path)))
    return _of_table(read_table(data))


@contextmanager
def standard_input(kind: Kind, columns: Mapping[str, str], form: str | None) -> Iterator[Unlabeled]:
    """The rows of standard input, which is first copied to a temporary file, so that memory does not grow with it.

    Args:
        kind, columns: as for `open_unlabeled`.
        form: one of `INPUT_FORMATS`; None for JSON lines if it starts with one, else lines.

    Raises:
        ConfigError: an unknown format, or the first line may be a text as well as the header of a table.
    """
    if form is not None and form not in INPUT_FORMATS:
        raise ConfigError(f"unknown --input-format {form!r}", remedy=did_you_mean(form, INPUT_FORMATS))
    with tempfile.TemporaryDirectory() as scratch:
        copied = Path(scratch) / STANDARD_INPUT
        with copied.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        form = form or _sniff(copied, columns)
        column = _only_column(kind, columns, STANDARD_INPUT) if form == "lines" else ""
        path = copied.rename(copied.with_suffix("." + form))  # readers know a format by the name

        def rows() -> Iterator[tuple[int | None, dict[str, Any]]]:
            try:
                yield from _lines(path, column) if form == "lines" else iterate_rows(path)
            except DataError as error:
                where = error.where and error.where.replace(str(path), STANDARD_INPUT)
                raise DataError(error.what, where=where, remedy=error.remedy) from None

        yield Unlabeled(STANDARD_INPUT, rows)


def input_columns(kind: Kind, known: Mapping[str, str], given: Mapping[str, str], there: Collection[str] = ()) -> Columns:
    """The columns of what a model is given.

    Args:
        known: part -> column, of the run or the registered set.
        given: part -> column, from the user.
        there: the columns of the data. Only chat needs them: it reads `prompt` where there are no messages.

    Raises:
        ConfigError: a part that this kind of model is not given.
    """
    parts = INPUTS[kind]
    for part in given:
        if part not in parts:
            flags = ", ".join(flag(p) for p in parts)
            raise ConfigError(f"{flag(part)} has no meaning for task {kind}", remedy=f"leave it out; its columns: {flags}")
    if kind not in _EITHER:
        named = {part: known.get(part, part) for part in parts if part in known or part != "text_pair"}
        return Columns(**(named | dict(given)))
    if len(given) > 1:
        what = f"{flag(parts[0])} and {flag(parts[1])} exclude each other"
        raise ConfigError(what, remedy="give the one that holds what is to be answered")
    if given:
        return Columns(**given)
    if kind == "causal-lm":
        part = "prompt" if "prompt" in known else "text"
        return Columns(**{part: known.get(part, part)})
    messages = known.get("messages", "messages")
    if "prompt" in there and not {messages, "messages", "conversations"} & set(there):
        return Columns(prompt="prompt")
    return Columns(messages=messages)


def check_inputs(table: Table, columns: Columns) -> None:
    """Refuse what can be refused without a tokenizer or a model: missing columns, cells without text, files that are missing.

    Raises:
        DataError: naming the first such row.
    """
    for part in ("text", "text_pair", "prompt"):
        name = getattr(columns, part)
        if name is None:
            continue
        for row, cell in enumerate(table.column(name, flag(part).removeprefix("--"))):
            if _is_empty(cell):
                remedy = "correct or remove the row, or leave all such rows out (--skip-empty)"
                raise DataError(f"column {name!r} has no text but {cell!r}", where=table.where(row), remedy=remedy)
        table.texts(name, flag(part).removeprefix("--"))
    if columns.choices is not None:
        choice_lists(table, columns.choices)
    if columns.image is not None:
        image_sources(table, columns.image)


def _of_table(table: Table) -> Unlabeled:
    def rows() -> Iterator[tuple[int | None, dict[str, Any]]]:
        for row in range(len(table)):
            line = None if table.lines is None else table.lines[row]
            yield line, {name: values[row] for name, values in table.columns.items()}

    return Unlabeled(table.source, rows)


def _lines(path: Path, column: str) -> Iterator[tuple[int | None, dict[str, Any]]]:
    for number, line in text_lines(path):
        yield number, {column: line.rstrip("\r\n")}


def _only_column(kind: Kind, columns: Mapping[str, str], source: str) -> str:
    """The column that a line of text goes into."""
    if kind == "chat":
        return columns.get("prompt", "prompt")
    needed = list(columns.values())
    if len(needed) != 1:
        what = f"one text per line, but the run needs {len(needed)} columns ({', '.join(needed)})"
        raise ConfigError(what, where=source, remedy="give CSV or JSONL (standard input: --input-format csv or jsonl)")
    return needed[0]


def _sniff(path: Path, columns: Mapping[str, str]) -> str:
    """`jsonl` if the first line is a JSON object, else `lines`.

    Raises:
        ConfigError: the first line looks like the header of a table with the run's columns.
    """
    with path.open("rb") as file:
        first = file.readline(_SNIFFED).decode("utf-8-sig", errors="replace").strip()
    if first.startswith("{"):
        try:
            json.loads(first)
        except ValueError:
            return "lines"
        return "jsonl"
    for separator, form in ((",", "csv"), ("\t", "tsv")):
        header = next(csv.reader([first], delimiter=separator), [])
        if columns and set(columns.values()) <= set(header):
            remedy = f"give --input-format {form}, or --input-format lines"
            raise ConfigError(f"the first line looks like a header: {first[:60]!r}", where=STANDARD_INPUT, remedy=remedy)
    return "lines"


def _image_files(directory: Path) -> list[str]:
    """The images below a directory, sorted by their path, which is relative to it. Hidden files are left out."""
    found: list[str] = []
    others: list[str] = []
    for path in directory.rglob("*"):
        name = path.relative_to(directory)
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            (found if path.suffix.lower() in IMAGES else others).append(name.as_posix())
    if not found:
        raise DataError("no image inside", where=str(directory), remedy=f"images are {', '.join(IMAGES)}")
    if others:
        print(f"allora: {len(others):,} files that are no images were left out, such as {min(others)}", file=sys.stderr)
    return sorted(found)
