import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def root(tmp_path_factory) -> Path:
    """One directory for all test processes."""
    base = tmp_path_factory.getbasetemp()
    path = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "architectures"
    path.mkdir(exist_ok=True)
    return path
