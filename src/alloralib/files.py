"""What every file of a run needs: its SHA-256, a write that is whole or absent, numbers that JSON can hold.

Imports the standard library and the project's errors only.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import ConfigError


def sha256(path: Path) -> str:
    """SHA-256 of a file, or of a directory's files with their relative names, in hexadecimal.

    Raises:
        OSError: the path does not exist or cannot be read.
    """
    if not path.is_dir():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(f"{file.relative_to(path).as_posix()} {sha256(file)}\n".encode())
    return digest.hexdigest()


def sha256_of_bytes(content: bytes) -> str:
    """SHA-256 of bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def sha256_of_json(value: Any) -> str:
    """SHA-256 of a value's JSON with sorted keys. What JSON cannot hold enters by its type and `repr`."""
    text = json.dumps(value, sort_keys=True, default=lambda item: [type(item).__name__, repr(item)])
    return sha256_of_bytes(text.encode())


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file atomically: a reader sees the old file or the new one, and so does the next process after a crash."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def staged(final: Path) -> Generator[Path]:
    """A path to write a file or directory to, which moves to `final` at the end of a `with` block that raises nothing.

    Raises:
        ConfigError: `final` already exists, or cannot be written.
    """
    if final.is_file() or (final.is_dir() and any(final.iterdir())):
        raise ConfigError("already exists", where=str(final), remedy="give another name, or remove it first")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{final.name}.partial-", dir=final.parent))
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror}", where=str(final), remedy="give another place") from None
    try:
        yield scratch / final.name
        (scratch / final.name).rename(final)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def sync(path: Path) -> None:
    """Flush a file, or a directory's list of names, to the disk. A no-op where the file system cannot."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # some file systems cannot for directories
        pass
    finally:
        os.close(descriptor)


def finite(value: Any) -> Any:
    """The value with every NaN and infinity in it replaced by None, which JSON can hold. Tuples become lists.

    >>> finite({"loss": float("nan"), "steps": (1, 2.5)})
    {'loss': None, 'steps': [1, 2.5]}
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
    return value
