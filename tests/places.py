"""Where tests find real data; what is not there is skipped with a reason."""

import os
from pathlib import Path

import pytest


def data_dir() -> Path:
    """The directory of real data sets: $ALLORA_DATA_DIR, or ../shared/data beside the repository."""
    given = os.environ.get("ALLORA_DATA_DIR")
    path = Path(given) if given else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip("no real data: set ALLORA_DATA_DIR")
    return path
