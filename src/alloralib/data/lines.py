"""The lines of a text file: UTF-8, gzipped or not. What is no such text is refused with what it is and how to convert it."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

from ..errors import DataError

MAX_LINE_BYTES = 1_000_000
"""A longer line (or object of a JSON list) is refused: it is binary, or many rows without line ends."""

WHOLE_FILE = 2**40
"""As a limit: none."""

_UTF8_MARK = b"\xef\xbb\xbf"  # the byte-order mark that spreadsheets write
_CONTENTS = {
    b"PK\x03\x04": ("a zip archive or a spreadsheet", "unpack it; save a spreadsheet as CSV UTF-8"),
    b"\xd0\xcf\x11\xe0": ("an old Excel file", "save the sheet as CSV UTF-8"),
    b"\x1f\x8b": ("compressed by gzip", "give it a name that ends in .gz"),
    b"PAR1": ("a Parquet file", "give it a name that ends in .parquet"),
    b"version https://git-lfs": ("a pointer of Git LFS, not the file itself", "get the file: git lfs pull"),
    b"<!DOCTYPE html": ("a web page", "download the file itself (on the hub: /resolve/ in place of /blob/)"),
    b"<html": ("a web page", "download the file itself (on the hub: /resolve/ in place of /blob/)"),
}  # what files with a wrong name start with


def text_lines(path: Path, encoding: str = "utf-8", limit: int = MAX_LINE_BYTES) -> Iterator[tuple[int, str]]:
    r"""Line numbers and lines of a text file, gzipped or not. Lines keep their ends; only "\n" ends a line.

    Raises:
        DataError: a line of more than `limit` bytes, a byte that is invalid in the encoding, a damaged gzip file, or
            something else than text.
    """
    try:
        with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as file:
            number = 0
            while raw := file.readline(limit + 1):
                number += 1
                if number == 1:
                    refuse_other_content(raw, path)
                    if encoding == "utf-8":
                        raw = raw.removeprefix(_UTF8_MARK)
                if len(raw) > limit and not raw.endswith(b"\n"):
                    size = len(raw)
                    while not raw.endswith(b"\n") and (raw := file.readline(limit)):
                        size += len(raw)
                    raise too_long(f"{path}, line {number}", size)
                yield number, _decode(raw, encoding, path, number)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        remedy = "download or compress it again; gzip -t tests it"
        raise DataError(f"damaged gzip file: {error}", where=str(path), remedy=remedy) from None


def too_long(where: str, size: int) -> DataError:
    """The error of a line, or an object of a JSON list, that is larger than `MAX_LINE_BYTES`."""
    remedy = "look for missing line ends or binary content; split long documents (max_length cuts tokens anyway)"
    return DataError(f"{size:,} bytes, but a row has at most {MAX_LINE_BYTES:,}", where=where, remedy=remedy)


def refuse_other_content(start: bytes, path: Path) -> None:
    """Raise `DataError` if the first bytes of a file are those of something that its name does not say."""
    for mark, (what, remedy) in _CONTENTS.items():
        if start[: len(mark)].lower() == mark.lower():
            raise DataError(f"the file is {what}", where=str(path), remedy=remedy)


def _decode(raw: bytes, encoding: str, path: Path, line: int) -> str:
    where, name = f"{path}, line {line}", path.name.removesuffix(".gz")
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        likely = "utf-16" if raw.startswith((b"\xff\xfe", b"\xfe\xff")) else "windows-1252"
        what = f"not UTF-8: byte {error.object[error.start]:#04x} at byte {error.start + 1} of the line"
        raise DataError(what, where=where, remedy=_convert(name, likely)) from None
    if "\0" in text:
        likely = "utf-16be" if text.startswith("\0") else "utf-16le"
        what = f"not UTF-8 text: byte 0x00 at character {text.index(chr(0)) + 1} of the line"
        raise DataError(what, where=where, remedy=_convert(name, likely))
    return text


def _convert(name: str, likely: str) -> str:
    kind = "UTF-16" if likely.startswith("utf-16") else "text of Western Windows"
    return f"save it as UTF-8; if it is {kind}: iconv -f {likely} -t utf-8 {name} > utf8-{name}"
