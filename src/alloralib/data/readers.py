"""Rows of a file: CSV, TSV, JSON lines, a JSON list, Parquet, or a directory of images. Text formats may be gzipped.

A malformed row is refused with the file, the row, the line and what to do.
"""

from __future__ import annotations

import csv
import gzip
import json
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..errors import DataError, did_you_mean

MAX_LINE_BYTES = 1_000_000
"""A longer line (or object of a JSON list) is refused: it is binary, or many rows without line ends."""

_WHOLE_FILE = 2**40

FORMATS = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")

Content = tuple[dict[str, list[Any]], list[int] | None]  # columns, lines
Rows = Iterator[tuple[int, dict[str, Any]]]  # line and row


def file_format(path: Path) -> str | None:
    """The format that a file's name implies, None for an unknown one.

    >>> file_format(Path("a/train.csv.gz"))
    '.csv'
    """
    name = path.name.lower()
    inner = Path(name.removesuffix(".gz")).suffix
    return inner if inner in FORMATS and not (inner == ".parquet" and name.endswith(".gz")) else None


def iterate_rows(path: Path) -> Rows:
    """The line and the cells of every row of a text file, one row at a time. Rows may have different columns."""
    return _READERS[file_format(path) or ""](path)


def read_file(path: Path) -> Content:
    """The columns of a file or of a directory of images, and the line of every row of a text file.

    Raises:
        DataError: no such file, an unknown format, or a malformed row.
    """
    if path.is_dir():
        return _read_images(path), None
    form = file_format(path)
    if not path.is_file():
        near = sorted(p.name for p in path.parent.glob("*") if file_format(p)) if path.parent.is_dir() else []
        raise DataError("no such file", where=str(path), remedy=did_you_mean(path.name, near) if near else "check the path")
    if form is None:
        remedy = f"use one of {', '.join(FORMATS)} (all but the last also with .gz), or a directory of images"
        raise DataError(f"unknown file format {''.join(path.suffixes[-2:])!r}", where=str(path), remedy=remedy)
    if form == ".parquet":
        return _read_parquet(path), None
    rows = list(_READERS[form](path))
    names = dict.fromkeys(name for _, row in rows for name in row)
    for index, (line, row) in enumerate(rows, start=1):
        missing = [name for name in names if name not in row]
        if missing:
            where = f"{path}, row {index} (line {line})"
            remedy = "give every row the same columns"
            raise DataError(f"column {missing[0]!r} is missing, but other rows have it", where=where, remedy=remedy)
    return {name: [row[name] for _, row in rows] for name in names}, [line for line, _ in rows]


def text_lines(path: Path, encoding: str = "utf-8", limit: int = MAX_LINE_BYTES) -> Iterator[tuple[int, str]]:
    r"""Line numbers and lines of a text file, gzipped or not. Lines keep their ends; only "\n" ends a line.

    Raises:
        DataError: a line of more than `limit` bytes, a byte that is invalid in the encoding, or a damaged gzip file.
    """
    try:
        with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as file:
            number = 0
            while raw := file.readline(limit + 1):
                number += 1
                if len(raw) > limit and not raw.endswith(b"\n"):
                    size = len(raw)
                    while not raw.endswith(b"\n") and (raw := file.readline(limit)):
                        size += len(raw)
                    raise _too_long(f"{path}, line {number}", size)
                if number == 1 and encoding == "utf-8":
                    raw = raw.removeprefix(b"\xef\xbb\xbf")  # the byte-order mark that spreadsheets write
                yield number, _decode(raw, encoding, path, number)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        remedy = "download or compress it again; gzip -t tests it"
        raise DataError(f"damaged gzip file: {error}", where=str(path), remedy=remedy) from None


def _decode(raw: bytes, encoding: str, path: Path, line: int) -> str:
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        likely = "utf-16" if raw.startswith((b"\xff\xfe", b"\xfe\xff")) else "latin1"
        what = f"not UTF-8: byte {error.object[error.start]:#04x} at byte {error.start + 1} of the line"
        remedy = f"convert it, for example: iconv -f {likely} -t utf-8 {path.name.removesuffix('.gz')}"
        raise DataError(what, where=f"{path}, line {line}", remedy=remedy) from None


def _too_long(where: str, size: int) -> DataError:
    remedy = "look for missing line ends or binary content; split long documents (max_length cuts tokens anyway)"
    return DataError(f"{size:,} bytes, but a row has at most {MAX_LINE_BYTES:,}", where=where, remedy=remedy)


def _csv_rows(path: Path) -> Rows:
    csv.field_size_limit(sys.maxsize)  # text_lines limits the line and reports where
    separator = "\t" if file_format(path) == ".tsv" else ","
    reader = csv.reader((line for _, line in text_lines(path)), delimiter=separator, strict=True)
    try:
        header = next(reader, None)
        if header is None:
            return
        if len(set(header)) < len(header):
            raise DataError("two columns have the same name", where=f"{path}, line 1", remedy="rename one of them")
        for number, row in enumerate(filter(None, reader), start=1):
            if len(row) != len(header):
                where = f"{path}, row {number} (line {reader.line_num})"
                remedy = "put fields that contain the separator in double quotes"
                raise DataError(f"{len(row)} fields, but the header has {len(header)}", where=where, remedy=remedy)
            yield reader.line_num, dict(zip(header, row, strict=True))
    except csv.Error as error:
        remedy = "look for a stray double quote"
        raise DataError(f"malformed: {error}", where=f"{path}, line {reader.line_num}", remedy=remedy) from None


def _jsonl_rows(path: Path) -> Rows:
    number = 0
    for line, text in text_lines(path):
        if not text.strip():
            continue
        number += 1
        where = f"{path}, row {number} (line {line})"
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            what, remedy = "", "write one JSON object per line (a .json file may hold a list of them instead)"
            if not text.endswith("\n"):
                what, remedy = "the last line is cut off: ", "download or write the file again, or remove its last line"
            raise DataError(f"{what}not JSON: {_reason(error)}", where=where, remedy=remedy) from None
        yield line, _object(row, text, where)


def _json_rows(path: Path) -> Rows:
    """A list of objects; a file that does not start with a bracket has one object per line."""
    # a whole list may stand on one line, so the limit applies to each object
    text = "".join(line for _, line in text_lines(path, limit=_WHOLE_FILE))
    position = _skip_space(text, 0)
    if not text.startswith("[", position):
        yield from _jsonl_rows(path)
        return
    decoder, number, line, counted = json.JSONDecoder(), 0, 1, 0
    while True:
        position = _skip_space(text, position + 1)  # past the bracket or a comma
        if text.startswith("]", position) and number == 0:
            break
        number += 1
        line, counted = line + text.count("\n", counted, position), position
        where = f"{path}, row {number} (line {line})"
        try:
            row, end = decoder.raw_decode(text, position)
            after = _skip_space(text, end)
            if text[after : after + 1] not in (",", "]"):  # "" at the end of the file
                raise json.JSONDecodeError("Expecting ',' or ']'", text, after)
        except (ValueError, RecursionError) as error:
            what, remedy = "", "write a list of objects, or one object per line"
            if not text.rstrip().endswith("]"):
                what, remedy = "the file is cut off: ", "download or write the file again"
            raise DataError(f"{what}not JSON: {_reason(error)}", where=where, remedy=remedy) from None
        size = len(text[position:end].encode("utf-8"))
        if size > MAX_LINE_BYTES:
            raise _too_long(where, size)
        yield line, _object(row, text[position:end], where)
        position = after
        if text[after] == "]":
            break
    if text[position + 1 :].strip():
        raise DataError("there is more after the list", where=str(path), remedy="write one list of objects and nothing else")


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        place = f"line {error.lineno} column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        return f"{error.msg} at {place}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _object(row: Any, text: str, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        remedy = 'write {"text": ..., "label": ...} per row'
        raise DataError(f"expected a JSON object, got {type(row).__name__}", where=where, remedy=remedy)
    refuse_half_characters(row, text, where)
    return row


def refuse_half_characters(value: Any, text: str, where: str) -> None:
    """Raise `DataError` if a value read from the JSON `text` has half of a surrogate pair, which no tokenizer accepts."""
    if "\\ud" not in text.lower():  # no escape of a surrogate
        return
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = ord(error.object[error.start])
        remedy = "correct or remove the row"
        raise DataError(f"half of a surrogate pair, \\u{half:04x}, stands alone", where=where, remedy=remedy) from None


_READERS: dict[str, Callable[[Path], Rows]] = {
    ".csv": _csv_rows, ".tsv": _csv_rows, ".jsonl": _jsonl_rows, ".json": _json_rows
}  # fmt: skip


def _read_parquet(path: Path) -> dict[str, list[Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        table: Any = parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        what = f"not a Parquet file: {error}".splitlines()[0]
        raise DataError(what, where=str(path), remedy="write it again, or give CSV or JSONL") from None
    return {name: table.column(name).to_pylist() for name in table.column_names}


def _read_images(path: Path) -> dict[str, list[Any]]:
    """One directory per class -> columns image (path below `path`) and label (the directory's name)."""
    folders = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not folders:
        raise DataError("no directory inside", where=str(path), remedy="put the images into one directory per class")
    if {f.name for f in folders} <= {"train", "val", "validation", "dev", "test"}:
        what = f"its directories are parts ({', '.join(f.name for f in folders)}), not classes"
        remedy = f"give {folders[0]} and the others as --data, --validation-data and --test-data"
        raise DataError(what, where=str(path), remedy=remedy)
    images: list[str] = []
    labels: list[str] = []
    for folder in folders:
        files = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
        if not files:
            raise DataError("an empty directory", where=str(folder), remedy="remove it, or put the images of its class there")
        for file in files:
            if file.suffix.lower() not in IMAGES:
                remedy = f"move it away; images are {', '.join(IMAGES)}"
                raise DataError("not an image file", where=str(file), remedy=remedy)
            images.append(file.relative_to(path).as_posix())
            labels.append(folder.name)
    return {"image": images, "label": labels}
