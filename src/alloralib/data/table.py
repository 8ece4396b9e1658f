"""Rows of a file, a directory of images, a bundled set or the hub, each with the place it came from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError, did_you_mean
from ..files import sha256, sha256_of_bytes
from .bundled import BUNDLED
from .readers import FORMATS, file_format, read_file
from .registry import REGISTRY


@dataclass(frozen=True)
class Table:
    """Columns of equal length.

    Attributes:
        source: the file, directory or set.
        sha256: of the whole source.
        columns: values by column name.
        lines: 1-based line numbers in a text file, else None.
        rows: 0-based row numbers in the source, None if the table is all of it.
    """

    source: str
    sha256: str
    columns: dict[str, list[Any]]
    lines: list[int] | None = None
    rows: list[int] | None = None

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), []))

    def where(self, row: int) -> str:
        """Where row `row` (0-based) of this table is found in its source."""
        line = "" if self.lines is None else f" (line {self.lines[row]})"
        return f"{self.source}, row {(row if self.rows is None else self.rows[row]) + 1}{line}"

    def column(self, name: str, flag: str) -> list[Any]:
        """The values of a column.

        Args:
            flag: the setting that names the column, for the error.

        Raises:
            DataError: no such column; the message shows the nearest names.
        """
        if name not in self.columns:
            remedy = did_you_mean(name, self.columns)
            raise DataError(f"there is no column {name!r} for --{flag}", where=self.source, remedy=remedy)
        return self.columns[name]

    def texts(self, name: str, flag: str) -> list[str]:
        """The values of a column of non-empty strings.

        Raises:
            DataError: no such column, or a row without text.
        """
        values = self.column(name, flag)
        for row, value in enumerate(values):
            if not isinstance(value, str) or not value.strip():
                remedy = "correct or remove the row, or name another column"
                raise DataError(f"column {name!r} has no text but {value!r}", where=self.where(row), remedy=remedy)
        return values

    def take(self, rows: list[int]) -> Table:
        """The given rows (0-based) in the given order; each still knows its place in the source."""
        return Table(
            self.source,
            self.sha256,
            {name: [values[i] for i in rows] for name, values in self.columns.items()},
            None if self.lines is None else [self.lines[i] for i in rows],
            list(rows) if self.rows is None else [self.rows[i] for i in rows],
        )


def read_table(source: str) -> Table:
    """Read a data set.

    Args:
        source: a file (.csv, .tsv, .jsonl, .json, .parquet; text also with .gz), a directory with one directory of images
            per class, the name of a bundled set, or a hub name; `name:split` chooses a split of a hub set (default `train`).

    Raises:
        DataError: it does not exist, is empty, or a row is malformed.
    """
    path = Path(source)
    if source in BUNDLED:
        file, columns = BUNDLED[source].load()
        table = Table(source, sha256(file), columns)
    elif path.exists() or file_format(path) is not None:
        columns, lines = read_file(path)
        table = Table(source, sha256(path), columns, lines)
    else:
        name, _, split = source.partition(":")
        remedy = f"give a file ({', '.join(FORMATS)}); " + did_you_mean(name, [*BUNDLED, *REGISTRY])
        table = read_hub(name, split=split or "train", remedy=remedy)
    if len(table) == 0:
        raise DataError("no rows", where=source, remedy="give a file with a header and at least two rows")
    return table


def read_hub(name: str, *, split: str, remedy: str, config: str | None = None, revision: str | None = None) -> Table:
    """One split of a set on the hub. Classes become their names (None if unlabelled), images their encoded bytes.

    Args:
        remedy: for the error.

    Raises:
        DataError: it cannot be loaded.
    """
    import datasets

    source = ":".join(part for part in (name, config, split) if part)
    try:
        loaded: Any = datasets.load_dataset(name, config, split=split, revision=revision)
    except Exception as error:  # the hub's client raises a dozen types, all of which mean that it cannot be loaded
        what = f"no such file, and it cannot be loaded from the hub ({type(error).__name__})"
        raise DataError(what, where=repr(source), remedy=remedy) from error
    columns: dict[str, list[Any]] = {}
    for column, feature in loaded.features.items():
        if isinstance(feature, datasets.Image):
            loaded = loaded.cast_column(column, datasets.Image(decode=False))
        values = list(loaded[column])
        if isinstance(feature, datasets.ClassLabel):  # names are readable, and the record keeps them
            values = [feature.int2str(value) if value is not None and value >= 0 else None for value in values]
        columns[column] = values
    digest = sha256_of_bytes(json.dumps(columns, default=str, sort_keys=True).encode())
    return Table(source, digest, columns)
