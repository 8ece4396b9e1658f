"""Rows of a file: CSV, TSV, JSON lines, a JSON list, Parquet, or a directory of images. Text formats may be gzipped.

A malformed row is refused with the file, the row, the line and what to do.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..errors import DataError, did_you_mean
from .csv_rows import csv_rows
from .lines import MAX_LINE_BYTES, WHOLE_FILE, refuse_other_content, text_lines, too_long

FORMATS = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
_OTHER_FORMATS = {
    **dict.fromkeys((".xlsx", ".xls", ".ods", ".numbers"), "save the sheet as CSV UTF-8"),
    **dict.fromkeys((".zip", ".tar", ".7z", ".rar"), "unpack it"),
    **dict.fromkeys((".bz2", ".xz", ".zst"), "unpack it, or compress it with gzip"),
    **dict.fromkeys((".txt", ".tab", ".dat"), "name it .csv or .tsv if it is a table with a header"),
    **dict.fromkeys((".ndjson", ".jsonlines", ".jl"), "name it .jsonl"),
    **dict.fromkeys((".arrow", ".feather", ".pkl", ".pickle"), "write it as Parquet: to_parquet of datasets and of pandas"),
}
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")

_KEYS_OF_ROWS = ("data", "rows", "examples", "items", "records", "instances", "train", "validation", "test")

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
    """The columns of a file or directory, and the line of every row of a text file.

    A key that a row of JSON does not have is None there.

    Raises:
        DataError: no such file, an unknown format, or a malformed row.
    """
    if path.is_dir():
        return _read_directory(path), None
    form = file_format(path)
    if not path.is_file():
        near = sorted(p.name for p in path.parent.glob("*") if file_format(p)) if path.parent.is_dir() else []
        raise DataError("no such file", where=str(path), remedy=did_you_mean(path.name, near) if near else "check the path")
    if form is None:
        remedy = f"use one of {', '.join(FORMATS)} (all but the last also with .gz), or a directory of images or .parquet files"
        if (other := path.suffix.lower()) in _OTHER_FORMATS:
            remedy = f"{_OTHER_FORMATS[other]}; {remedy}"
        raise DataError(f"unknown file format {''.join(path.suffixes[-2:])!r}", where=str(path), remedy=remedy)
    if form == ".parquet":
        return read_parquet(path), None
    rows = list(_READERS[form](path))
    names = dict.fromkeys(name for _, row in rows for name in row)
    return {name: [row.get(name) for _, row in rows] for name in names}, [line for line, _ in rows]


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
            if "\r" in text.rstrip():
                remedy = rf"end the lines with \n: tr '\r' '\n' < {path.name} > rows.jsonl"
            elif not text.endswith("\n"):
                what, remedy = "the last line is cut off: ", "download or write the file again, or remove its last line"
            raise DataError(f"{what}not JSON: {_reason(error)}", where=where, remedy=remedy) from None
        yield line, _object(row, text, where)


def _json_rows(path: Path) -> Rows:
    """A list of objects; a file that does not start with a bracket has one object per line."""
    # a whole list may stand on one line, so the limit applies to each object
    text = "".join(line for _, line in text_lines(path, limit=WHOLE_FILE))
    position = _skip_space(text, 0)
    decoder, number, line, counted = json.JSONDecoder(), 0, 1, 0
    if not text.startswith("[", position):
        single = _single_object(text[position:], decoder)
        if single is None:
            yield from _jsonl_rows(path)
            return
        _refuse_columns(single, path)
        line = 1 + text.count("\n", 0, position)
        yield line, _object(single, text, f"{path}, row 1 (line {line})")
        return
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
            raise too_long(where, size)
        yield line, _object(row, text[position:end], where)
        position = after
        if text[after] == "]":
            break
    if text[position + 1 :].strip():
        raise DataError("there is more after the list", where=str(path), remedy="write one list of objects and nothing else")


def _single_object(text: str, decoder: json.JSONDecoder) -> dict[str, Any] | None:
    """The object that a text consists of; None if it is anything else."""
    try:
        value, end = decoder.raw_decode(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and not text[end:].strip() else None


def _refuse_columns(value: dict[str, Any], path: Path) -> None:
    """Raise `DataError` if a file is one JSON object that holds all rows: a list per column, or the rows below a key."""
    below = next(
        (name for name, cells in value.items() if _are_rows(cells) and (name in _KEYS_OF_ROWS or len(value) == 1)), None
    )
    if below is not None:
        what = f"one object, with the rows below {below!r}"
        remedy = f"write one object per row: jq -c '.[{json.dumps(below)}][]' {path.name} > rows.jsonl"
    elif value and (all(map(_is_column, value.values())) or all(isinstance(cells, dict) for cells in value.values())):
        what = f"one object, with the cells of every column ({', '.join(map(repr, value))})"
        remedy = (
            f"write one object per row: pandas.read_json({path.name!r}).to_json('rows.jsonl', orient='records', lines=True)"
        )
    else:
        return
    raise DataError(what, where=str(path), remedy=remedy)


def _is_column(cells: Any) -> bool:
    """Whether a value is a list, but not the messages of one conversation."""
    first = cells[0] if isinstance(cells, list) and cells else None
    return isinstance(cells, list) and not (isinstance(first, dict) and {"role", "from"} & set(first))


def _are_rows(cells: Any) -> bool:
    return _is_column(cells) and bool(cells) and isinstance(cells[0], dict)


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
    ".csv": csv_rows, ".tsv": csv_rows, ".jsonl": _jsonl_rows, ".json": _json_rows
}  # fmt: skip


def read_parquet(*paths: Path) -> dict[str, list[Any]]:
    """The columns of Parquet files, one after the other.

    Indices of classes become the names that `datasets` keeps in the schema, None for no label.

    Raises:
        DataError: not a Parquet file, files with other columns, or an index without a name.
    """
    import pyarrow
    from pyarrow import parquet

    columns: dict[str, list[Any]] = {}
    for number, path in enumerate(paths):
        try:
            table: Any = parquet.ParquetFile(path).read()
        except (pyarrow.ArrowException, OSError) as error:
            with path.open("rb") as file:
                refuse_other_content(file.read(64), path)
            what = f"not a Parquet file: {error}".splitlines()[0]
            raise DataError(what, where=str(path), remedy="write it again, or give CSV or JSONL") from None
        names = table.column_names
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise DataError(f"two columns have the same name {twice!r}", where=str(path), remedy="rename one of them")
        if number and set(names) != set(columns):
            odd = ", ".join(sorted(set(names) ^ set(columns)))
            raise DataError(f"other columns than {paths[0].name} has: {odd}", where=str(path), remedy="write them again")
        classes = _class_names(table.schema.metadata or {})
        for name in names:
            cells = table.column(name).to_pylist()
            if name in classes:
                cells = [_class_name(cell, classes[name], f"{path}, row {row}") for row, cell in enumerate(cells, start=1)]
            columns.setdefault(name, []).extend(cells)
    return columns


def _class_names(metadata: dict[bytes, bytes]) -> dict[str, list[str]]:
    """Column -> class names, from what `datasets` writes into the schema of a file."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return {name: f["names"] for name, f in features.items() if isinstance(f, dict) and f.get("_type") == "ClassLabel"}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def _class_name(cell: Any, names: list[str], where: str) -> Any:
    if not isinstance(cell, int):  # None, or a column that was changed since
        return cell
    if cell >= len(names):
        remedy = "write the file again from its source"
        raise DataError(f"class {cell} has no name in the file's schema, which names {len(names)}", where=where, remedy=remedy)
    return names[cell] if cell >= 0 else None


def _read_directory(path: Path) -> dict[str, list[Any]]:
    """The Parquet files in a directory, or its images."""
    files = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))
    shards = [p for p in files if file_format(p) == ".parquet"]
    if not shards:
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            remedy = "write it as Parquet: datasets.load_from_disk(DIRECTORY)[SPLIT].to_parquet('rows.parquet')"
            raise DataError("a directory that `datasets` saved", where=str(path), remedy=remedy)
        return _read_images(path)
    stems = {re.split(r"[-_.]?\d", p.name.removesuffix(p.suffix))[0] for p in shards}
    if len(stems) > 1:
        what = f"its Parquet files are several parts or sets ({', '.join(sorted(stems))})"
        remedy = f"give one file, such as {shards[0]}, or put the files of each part into an own directory"
        raise DataError(what, where=str(path), remedy=remedy)
    return read_parquet(*shards)


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
