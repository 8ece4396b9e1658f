"""Cells, the independent pieces of a study: computed one by one or in several processes, each saved as JSON when it is done."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from alloralib.errors import TrainingError
from alloralib.files import sha256_of_json, write_text

Key = dict[str, Any]
Settings = dict[str, Any]
Result = dict[str, Any]
Work = Callable[[Key], Result]


@dataclass(frozen=True)
class Cell:
    """A finished piece of work: its key and its result."""

    key: Key
    result: Result


def select(cells: Sequence[Cell], **wanted: Any) -> list[Cell]:
    """The cells whose key has these values, in order."""
    return [c for c in cells if all(c.key.get(name) == value for name, value in wanted.items())]


def results(cells: Sequence[Cell], **wanted: Any) -> list[Result]:
    """The results of the cells whose key has these values, in order."""
    return [c.result for c in select(cells, **wanted)]


def values(cells: Sequence[Cell], entry: str, **wanted: Any) -> list[Any]:
    """One entry of each of these results, in order."""
    return [result[entry] for result in results(cells, **wanted)]


def work_cells(keys: list[Key], work: Work, directory: Path, *, jobs: int, tell: Callable[[str], None]) -> list[Cell]:
    """Compute the cells that `directory` does not have yet.

    A result is written, with six significant digits, as soon as it is there.

    Args:
        keys: of all cells.
        work: computes a cell. With more than one job it must be picklable.
        directory: one file per finished cell. Complete ones are used, damaged ones computed again.
        jobs: number of processes. Each uses one thread, so that a result does not depend on their number.
        tell: called with a line for each finished cell.

    Returns:
        all cells, in the order of `keys`.

    Raises:
        TrainingError: a process died.
        Exception: whatever `work` raises.
    """
    found = {number: read_json(_path(directory, key)) for number, key in enumerate(keys)}
    done = {n: f for n, f in found.items() if isinstance(f, dict) and f.get("key") == plain(keys[n])}
    left = {n: key for n, key in enumerate(keys) if n not in done}
    for number, result in _worked(left, work, jobs):
        done[number] = {"key": plain(keys[number]), "result": plain(rounded(result))}
        write_text(_path(directory, keys[number]), json.dumps(done[number], allow_nan=False))
        tell(f"{len(done)}/{len(keys)}: " + ", ".join(f"{k} {v}" for k, v in keys[number].items()))
    return [Cell(**done[n]) for n in range(len(keys))]


def _worked(keys: dict[int, Key], work: Work, jobs: int) -> Iterator[tuple[int, Result]]:
    if jobs == 1 or len(keys) < 2:
        with _one_thread():
            for number, key in keys.items():
                yield number, work(key)
        return
    # A forked process would inherit the parent's threads and locks, so each is started afresh.
    pool = ProcessPoolExecutor(min(jobs, len(keys)), multiprocessing.get_context("spawn"), _start_process)
    try:
        waiting = {pool.submit(work, key): number for number, key in keys.items()}
        for future in as_completed(waiting):
            yield waiting[future], future.result()
        pool.shutdown()
    except BrokenProcessPool:
        raise TrainingError(
            "a process of the study died, perhaps because memory ran out",
            remedy="give the same command again, which continues where it stopped; add --jobs 1 to use less memory",
        ) from None
    finally:
        for child in multiprocessing.active_children():  # after an interrupt or a failed cell, do not wait for the others
            child.kill()
        pool.shutdown(wait=False, cancel_futures=True)


def _start_process() -> None:
    torch.set_num_threads(1)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute with one thread: the order of summation, and so the last digits, depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def rounded(value: Any, digits: int = 6) -> Any:
    """Round every number to so many significant digits, also inside lists and dictionaries."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}")
    if isinstance(value, dict):
        return {k: rounded(v, digits) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(v, digits) for v in value]
    return value


def plain(value: Any) -> Any:
    """The value as JSON returns it: tuples become lists, keys become strings."""
    return json.loads(json.dumps(value, allow_nan=False))


def read_json(path: Path) -> Any:
    """The content of a JSON file, or None if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def pack(right: list[bool]) -> str:
    """Encode which rows were right, four to a hexadecimal digit, the first row in the highest bit.

    >>> pack([True, False, False, True, True])
    '98'
    """
    padded = right + [False] * (-len(right) % 4)
    return f"{int(''.join('01'[r] for r in padded), 2):0{len(padded) // 4}x}"


def unpack(correct: str, rows: int) -> list[int]:
    """Undo `pack` for a known number of rows: 1 where a row was right, else 0.

    >>> unpack("98", 5)
    [1, 0, 0, 1, 1]
    """
    return [int(bit) for bit in f"{int(correct, 16):0{4 * len(correct)}b}"[:rows]]


def _path(directory: Path, key: Key) -> Path:
    return directory / f"{sha256_of_json(key)[:16]}.json"
