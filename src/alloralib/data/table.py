"""Rows from a CSV, TSV, JSONL or Parquet file, a bundled set or the hub, with the place each row came from."""

from __future__ import annotations

import csv
import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError, did_you_mean
from .bundled import BUNDLED

READERS = {".csv": ",", ".tsv": "\t", ".jsonl": None, ".parquet": None}


@dataclass(frozen=True)
class Table:
    """Columns of equal length. `lines` are 1-based line numbers in a text file, None where there are no lines."""

    source: str
    sha256: str
    columns: dict[str, list[Any]]
    lines: list[int] | None = None

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), []))

    def where(self, row: int) -> str:
        """How to find row `row` (0-based) again."""
        line = "" if self.lines is None else f" (line {self.lines[row]})"
        return f"{self.source}, row {row + 1}{line}"

    def column(self, name: str, flag: str) -> list[Any]:
        """The values of a column; `flag` is the setting that named it, for the error.

        Raises:
            DataError: no such column; the nearest names are shown.
        """
        if name not in self.columns:
            raise DataError(
                f"there is no column {name!r} for --{flag}", where=self.source, remedy=did_you_mean(name, self.columns)
            )
        return self.columns[name]

    def texts(self, name: str, flag: str) -> list[str]:
        """A column in which every value is a string with something in it.

        Raises:
            DataError: no such column, or a row without text; its number is given.
        """
        values = self.column(name, flag)
        for row, value in enumerate(values):
            if not isinstance(value, str) or not value.strip():
                raise DataError(
                    f"column {name!r} has no text but {value!r}",
                    where=self.where(row),
                    remedy="mend or remove the row, or name another column",
                )
        return values

    def take(self, rows: list[int]) -> Table:
        """The given rows (0-based), in the given order; each still knows its line."""
        return Table(
            self.source,
            self.sha256,
            {name: [values[i] for i in rows] for name, values in self.columns.items()},
            None if self.lines is None else [self.lines[i] for i in rows],
        )


def read_table(source: str) -> Table:
    """Read a data set.

    Args:
        source: a file (.csv, .tsv, .jsonl, .parquet), the name of a bundled set, or a hub name; `name:split` picks a
            split of a hub set (default `train`).

    Raises:
        DataError: it is not there, is empty, or a row is malformed.
    """
    path = Path(source)
    if path.suffix.lower() in READERS or path.is_file():
        table = _read_file(path)
    elif source in BUNDLED:
        file, columns = BUNDLED[source].load()
        table = Table(source, _sha256(file), columns)
    else:
        table = _read_hub(source)
    if len(table) == 0:
        raise DataError("no rows", where=source, remedy="give a file with a header and at least two rows")
    return table


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_file(path: Path) -> Table:
    suffix = path.suffix.lower()
    if not path.is_file():
        near = sorted(p.name for p in path.parent.glob("*") if p.suffix.lower() in READERS) if path.parent.is_dir() else []
        raise DataError("no such file", where=str(path), remedy=did_you_mean(path.name, near) if near else "check the path")
    if suffix not in READERS:
        raise DataError(f"unknown kind of file {suffix!r}", where=str(path), remedy=f"use one of {', '.join(READERS)}")
    digest = _sha256(path)
    if suffix == ".parquet":
        return Table(str(path), digest, _read_parquet(path))
    try:
        reader = _jsonl_rows if suffix == ".jsonl" else _csv_rows
        rows = list(reader(path))
    except UnicodeDecodeError as error:
        raise DataError(
            f"not UTF-8: byte {error.object[error.start]:#04x} at offset {error.start} of what was being read",
            where=str(path),
            remedy=f"convert it, for example: iconv -f latin1 -t utf-8 {path.name}",
        ) from None
    names = dict.fromkeys(name for _, row in rows for name in row)
    for index, (line, row) in enumerate(rows):
        missing = [name for name in names if name not in row]
        if missing:
            raise DataError(
                f"column {missing[0]!r} is missing, which other rows have",
                where=f"{path}, row {index + 1} (line {line})",
                remedy="give every row the same columns",
            )
    return Table(str(path), digest, {name: [row[name] for _, row in rows] for name in names}, [line for line, _ in rows])


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(sys.maxsize)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=READERS[path.suffix.lower()] or ",", strict=True)
        try:
            header = next(reader, None)
            if header is None:
                return
            if len(set(header)) < len(header):
                raise DataError("two columns have the same name", where=f"{path}, line 1", remedy="rename one of them")
            for number, row in enumerate(reader, start=1):
                if not row:
                    continue
                if len(row) != len(header):
                    raise DataError(
                        f"{len(row)} fields, and the header has {len(header)}",
                        where=f"{path}, row {number} (line {reader.line_num})",
                        remedy="put fields that contain the separator in double quotes",
                    )
                yield reader.line_num, dict(zip(header, row, strict=True))
        except csv.Error as error:
            raise DataError(
                f"malformed: {error}", where=f"{path}, line {reader.line_num}", remedy="look for a stray double quote"
            ) from None


def _jsonl_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig") as file:
        number = 0
        for line, text in enumerate(file, start=1):
            if not text.strip():
                continue
            number += 1
            where = f"{path}, row {number} (line {line})"
            try:
                row = json.loads(text)
            except json.JSONDecodeError as error:
                raise DataError(
                    f"not JSON: {error.msg} at column {error.colno}", where=where, remedy="one JSON object per line"
                ) from None
            if not isinstance(row, dict):
                raise DataError(
                    f"a JSON object is needed, not {type(row).__name__}",
                    where=where,
                    remedy='write {"text": ..., "label": ...} on each line',
                )
            yield line, row


def _read_parquet(path: Path) -> dict[str, list[Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        table: Any = parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"not a Parquet file: {error}".splitlines()[0], where=str(path), remedy="write it again, or give CSV or JSONL"
        ) from None
    return {name: table.column(name).to_pylist() for name in table.column_names}


def _read_hub(source: str) -> Table:
    import datasets

    name, _, split = source.partition(":")
    try:
        loaded = datasets.load_dataset(name, split=split or "train")
    except Exception as error:  # the hub's client raises a dozen kinds, all of which mean: it is not to be had
        raise DataError(
            f"neither a file, nor a bundled set, nor to be had from the hub ({type(error).__name__})",
            where=repr(source),
            remedy=f"give a file ({', '.join(READERS)}); " + did_you_mean(source, BUNDLED),
        ) from error
    columns: dict[str, list[Any]] = {}
    for column, feature in loaded.features.items():
        values = list(loaded[column])
        if isinstance(feature, datasets.ClassLabel):  # names are what a person, and the record, can read
            values = [feature.int2str(value) if value >= 0 else None for value in values]
        columns[column] = values
    digest = hashlib.sha256(json.dumps(columns, default=str, sort_keys=True).encode()).hexdigest()
    return Table(source, digest, columns)
