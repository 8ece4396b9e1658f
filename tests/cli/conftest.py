"""What the tests of all commands share."""

import warnings

import pytest


@pytest.fixture(autouse=True)
def _warnings():
    """Restore the warning filters, which a command changes for its process."""
    with warnings.catch_warnings():
        yield
