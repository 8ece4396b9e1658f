"""Tokenized rows, kept from one run to the next by the hash of everything that they are made of.

    $ALLORA_CACHE/tokens/KEY/
        data-*.arrow, dataset_info.json, state.json    as `datasets` saves them; memory-mapped when they are read
        manifest.json                                  sha256 of every file above

Nothing is ever out of date: other rows, another tokenizer, setting or version have another key. An entry is built beside
its place and moved there at once, checked before it is used, and thrown away where it is damaged. All of it can be deleted
at any time. `ALLORA_TOKEN_CACHE=0` turns it off. No pickle.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import pyarrow

from ..errors import ConfigError
from .cache import cache_dir
from .forms import Columns, Kind
from .table import Table

FORMAT = 1
"""Goes up whenever our own code makes other tokens of the same rows."""
SWITCH = "ALLORA_TOKEN_CACHE"
MANIFEST = "manifest.json"
_MAKERS = ("transformers", "tokenizers", "trl", "jinja2", "datasets")
_SETTINGS = (
    *("chat_template", "special_tokens_map", "model_max_length", "model_input_names", "padding_side", "truncation_side"),
    *("add_bos_token", "add_eos_token", "split_special_tokens"),
)


class TokenCache:
    """The tokenized rows of one run's tables.

    Args:
        kind: of the task; images are not kept.
        columns: which column plays which part.
        tokenizer: a fast one of transformers; what another makes of a text cannot be told by its hash, and is not kept.
        names: the classes in the order of their numbers, where there are classes.
        max_length: tokens per row.

    Raises:
        ConfigError: the switch has a value that is neither on nor off.
    """

    def __init__(self, kind: Kind, columns: Columns, tokenizer: Any, *, names: list[str] | None, max_length: int) -> None:
        self.root: Path | None = None
        if not turned_on() or kind == "image-classification" or getattr(tokenizer, "backend_tokenizer", None) is None:
            return
        self.root = cache_dir() / "tokens"
        self._made_of: dict[str, Any] = {
            "format": FORMAT,
            "versions": {name: importlib.metadata.version(name) for name in _MAKERS},
            "kind": kind,
            "columns": columns.named(),
            "names": names,
            "max_length": max_length,
            "tokenizer": _described(tokenizer),
        }

    def key(self, table: Table) -> str:
        """The SHA-256 of all that the tokens of a table depend on, in hexadecimal."""
        return _digest(self._made_of | {"rows": table.columns})

    def read(self, table: Table) -> datasets.Dataset | None:
        """The examples that `write` was given for these rows, memory-mapped; None where there are none that are whole."""
        if self.root is None:
            return None
        place = self.root / self.key(table)
        if not place.is_dir():
            return None
        try:
            manifest = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
            if manifest["sha256"] != _digests(place):
                raise ValueError("a file is not what was written")
            return datasets.Dataset.load_from_disk(place)
        except (OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException) as error:
            print(f"allora: warning: {place}: damaged ({error}); the rows are tokenized anew", file=sys.stderr)
            _discard(place)
            return None

    def write(self, table: Table, examples: datasets.Dataset) -> None:
        """Keep the examples of a table. Where that is not possible (no room, no right), the run goes on without."""
        if self.root is None:
            return
        place = self.root / self.key(table)
        with contextlib.suppress(OSError):
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.root, prefix=".partial-") as scratch:
                made = Path(scratch) / "entry"
                examples.save_to_disk(made)
                (made / MANIFEST).write_text(json.dumps({"sha256": _digests(made)}), encoding="utf-8")
                made.rename(place)  # an error where another process was first, whose entry is the same


def turned_on() -> bool:
    """Whether tokenized rows are kept, as the environment says.

    Raises:
        ConfigError: it says something else.
    """
    value = os.environ.get(SWITCH, "1").casefold()
    if value not in ("0", "off", "1", "on"):
        raise ConfigError(f"{SWITCH}={value!r} is neither on nor off", where="environment", remedy=f"use {SWITCH}=0 or 1")
    return value in ("1", "on")


def _described(tokenizer: Any) -> dict[str, Any]:
    """What a tokenizer makes of a text depends on this."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    for state in ("truncation", "padding"):  # left by the last call, set anew by the next
        backend.pop(state, None)
    settings = {name: getattr(tokenizer, name, None) for name in _SETTINGS}
    return {"class": type(tokenizer).__name__, "backend": _digest(backend), **settings}


def _digest(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, default=lambda value: [type(value).__name__, repr(value)])
    return hashlib.sha256(text.encode()).hexdigest()


def _digests(place: Path) -> dict[str, str]:
    digests = {}
    for path in sorted(place.iterdir()):
        if path.name != MANIFEST:
            with path.open("rb") as file:
                digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _discard(place: Path) -> None:
    """Out of the way at once, so that no other process finds half of it."""
    with contextlib.suppress(OSError):
        doomed = tempfile.mkdtemp(dir=place.parent, prefix=".damaged-")
        place.rename(Path(doomed) / "entry")
        shutil.rmtree(doomed, ignore_errors=True)
