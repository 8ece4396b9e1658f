"""The directory of the real data sets, which are not part of the project."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def data_dir() -> Path:
    """$ALLORA_DATA_DIR, or `shared/data` beside the repository; skips where there is neither, and fails there in CI."""
    given = os.environ.get("ALLORA_DATA_DIR")
    path = Path(given) if given else ROOT.parent / "shared" / "data"
    if not path.is_dir():
        reason = f"no data sets at {path}: set ALLORA_DATA_DIR to a directory with banking77, trec, ..."
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    return path
