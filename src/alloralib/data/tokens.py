"""A cache of tokenized rows on disk, keyed by the SHA-256 of everything that the tokens depend on.

    $ALLORA_CACHE/tokens/KEY/
        data-*.arrow, dataset_info.json, state.json    as `datasets` saves them; memory-mapped when read
        manifest.json                                  sha256 of every file above

An entry never goes stale: other rows, another tokenizer, setting or library version have another key. An entry is written
to a temporary directory and moved into place atomically, checked before it is used, and deleted if it is damaged. The
cache can be deleted at any time; `ALLORA_TOKEN_CACHE=0` turns it off. It holds no pickles.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import datasets
import pyarrow

from ..errors import ConfigError
from ..files import sha256, sha256_of_json
from .cache import cache_dir
from .forms import Columns, Kind
from .table import Table

FORMAT = 3
"""Raised whenever this package's own code makes other tokens of the same rows."""
SWITCH = "ALLORA_TOKEN_CACHE"
MANIFEST = "manifest.json"
_LIBRARIES = ("transformers", "tokenizers", "jinja2", "datasets", "trl")
_SETTINGS = (
    *("chat_template", "special_tokens_map", "model_max_length", "model_input_names", "padding_side", "truncation_side"),
    *("add_bos_token", "add_eos_token", "split_special_tokens", "chat_date"),
)


class TokenCache:
    """The tokenized rows of one run's tables.

    Args:
        kind: of the task; images are not cached.
        columns: which column plays which part.
        tokenizer: of transformers. Slow tokenizers have no serialized form to hash, so their rows are not cached.
        names: the classes in the order of their indices, None without classes.
        max_length: tokens per row.

    Raises:
        ConfigError: the environment variable that turns the cache on or off has another value.
    """

    def __init__(self, kind: Kind, columns: Columns, tokenizer: Any, *, names: list[str] | None, max_length: int) -> None:
        self.root: Path | None = None
        if not turned_on() or kind == "image-classification" or getattr(tokenizer, "backend_tokenizer", None) is None:
            return
        self.root = cache_dir() / "tokens"
        self._ingredients: dict[str, Any] = {
            "format": FORMAT,
            "versions": {name: importlib.metadata.version(name) for name in _LIBRARIES if importlib.util.find_spec(name)},
            "kind": kind,
            "columns": columns.named(),
            "names": names,
            "max_length": max_length,
            "tokenizer": _describe(tokenizer),
        }

    def key(self, table: Table) -> str:
        """The SHA-256 of everything that the tokens of a table depend on, in hexadecimal."""
        return sha256_of_json(self._ingredients | {"rows": table.columns})

    def read(self, table: Table) -> datasets.Dataset | None:
        """The examples of a table, memory-mapped; None if they are not in the cache or the entry is damaged."""
        if self.root is None:
            return None
        entry = self.root / self.key(table)
        if not entry.is_dir():
            return None
        try:
            manifest = json.loads((entry / MANIFEST).read_text(encoding="utf-8"))
            if manifest["sha256"] != _digests(entry):
                raise ValueError("a file has another sha256 than when it was written")
            return datasets.Dataset.load_from_disk(entry)
        except (OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException) as error:
            print(f"allora: warning: {entry}: damaged ({error}); tokenizing the rows again", file=sys.stderr)
            shutil.rmtree(entry, ignore_errors=True)
            return None

    def write(self, table: Table, examples: datasets.Dataset) -> None:
        """Keep the examples of a table. If that fails (disk full, no permission), the run goes on without."""
        if self.root is None:
            return
        with contextlib.suppress(OSError):
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.root, prefix=".partial-") as scratch:
                partial = Path(scratch) / "entry"
                examples.save_to_disk(partial)
                (partial / MANIFEST).write_text(json.dumps({"sha256": _digests(partial)}), encoding="utf-8")
                partial.rename(self.root / self.key(table))  # fails if another process wrote the same entry first


def turned_on() -> bool:
    """Whether rows are cached, by the environment variable `ALLORA_TOKEN_CACHE`.

    Raises:
        ConfigError: it is neither 0, off, 1 nor on.
    """
    value = os.environ.get(SWITCH, "1").casefold()
    if value not in ("0", "off", "1", "on"):
        raise ConfigError(f"{SWITCH}={value!r} is neither on nor off", where="environment", remedy=f"use {SWITCH}=0 or 1")
    return value in ("1", "on")


def _describe(tokenizer: Any) -> dict[str, Any]:
    """Everything about a tokenizer that changes the tokens of a text."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    for state in ("truncation", "padding"):  # left over from the last call, set again by the next
        backend.pop(state, None)
    settings = {name: getattr(tokenizer, name, None) for name in _SETTINGS}
    return {"class": type(tokenizer).__name__, "backend": sha256_of_json(backend), **settings}


def _digests(entry: Path) -> dict[str, str]:
    return {path.name: sha256(path) for path in sorted(entry.iterdir()) if path.name != MANIFEST}
