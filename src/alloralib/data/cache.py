"""The directory for what is made once: converted models, tokenized rows, digests of weights. Imports nothing heavy."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """`$ALLORA_CACHE`, else `alloralib` in the user's cache directory."""
    home = os.environ.get("ALLORA_CACHE")
    if home:
        return Path(home)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "alloralib"
