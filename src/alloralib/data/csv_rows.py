"""Rows of a CSV or TSV file, as spreadsheets and pandas write them."""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import DataError
from .lines import MAX_LINE_BYTES, WHOLE_FILE, text_lines, too_long

_SEPARATORS = {"csv": ",;\t|", "tsv": "\t,;|"}  # the first of them that the header has
_SEP_LINE = re.compile(r"sep=(.)[\r\n]*", re.IGNORECASE)  # Excel's own first line
_QUOTED = re.compile(r'"[^"]*"')


def csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    r"""The line on which each row ends, and the row as column -> text.

    The separator is the first of comma, semicolon, tab and bar (tab first in a .tsv file) that the header has outside quotes.
    Lines end in "\n", "\r\n" or "\r"; in quotes all of them are text. Empty rows, and empty cells behind the last column
    that has a name, are left out.

    Raises:
        DataError: a row with another number of cells than the header, columns of the same name, or a stray quote.
    """
    csv.field_size_limit(sys.maxsize)  # _lines limits the line and reports where
    lines = _lines(path)
    skipped, first = 0, next(lines, "")
    while first and not first.strip(" \t\r\n,;|"):
        skipped, first = skipped + 1, next(lines, "")
    if not first:
        return
    if named := _SEP_LINE.fullmatch(first):
        skipped, separator, first = skipped + 1, named[1], next(lines, "")
    else:
        candidates = _SEPARATORS["tsv" if path.name.lower().removesuffix(".gz").endswith(".tsv") else "csv"]
        bare = _QUOTED.sub("", first)
        separator = next((mark for mark in candidates if mark in bare), candidates[0])

    def rest() -> Iterator[str]:
        yield first
        yield from lines

    reader = csv.reader(rest(), delimiter=separator, strict=True)
    try:
        header = _names(next(reader, []), f"{path}, line {skipped + reader.line_num}")
        # of a file with one column, a quoted empty text is a row, and an empty line is none
        rows = (row for row in reader if any(row) or len(row) == len(header) == 1)
        for number, row in enumerate(rows, start=1):
            line = skipped + reader.line_num
            yield line, _row(row, header, separator, f"{path}, row {number} (line {line})")
    except csv.Error as error:
        remedy = "look for a stray double quote"
        raise DataError(f"malformed: {error}", where=f"{path}, line {skipped + reader.line_num}", remedy=remedy) from None


def _lines(path: Path) -> Iterator[str]:
    r"""The lines of a file, of which "\r" alone ends some."""
    number = 0
    for _, line in text_lines(path, limit=WHOLE_FILE):
        pieces = re.split(r"(?<=\r)(?!\n|\Z)", line) if "\r" in line[:-2] else [line]
        for piece in pieces:
            number += 1
            if len(piece) > MAX_LINE_BYTES // 4 and (size := len(piece.encode())) > MAX_LINE_BYTES + 1:
                raise too_long(f"{path}, line {number}", size)
            yield piece


def _names(header: list[str], where: str) -> list[str]:
    """The names of the columns, without those behind the last name."""
    names = [name.strip() for name in header]
    while names and not names[-1]:
        names.pop()
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        what = f"two columns have the same name {twice!r}" if twice else "two columns have no name"
        raise DataError(what, where=where, remedy="rename one of them")
    return names


def _row(row: list[str], header: list[str], separator: str, where: str) -> dict[str, Any]:
    while len(row) > len(header) and not row[-1].strip():
        row.pop()
    if len(row) != len(header):
        remedy = f"put fields that contain the separator {separator!r} in double quotes; name every column in the header"
        raise DataError(f"{len(row)} fields, but the header has {len(header)}", where=where, remedy=remedy)
    return dict(zip(header, row, strict=True))
