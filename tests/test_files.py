"""Hashes, atomic writes and finite numbers."""

import hashlib
import math
import os

import pytest

from alloralib.files import finite, sha256, sha256_of_json, write_text


def test_sha256_of_a_file_and_of_a_directory(tmp_path) -> None:
    (tmp_path / "a").write_bytes(b"one")
    assert sha256(tmp_path / "a") == hashlib.sha256(b"one").hexdigest()
    before = sha256(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")  # a name is part of a directory's content
    assert sha256(tmp_path) != before
    with pytest.raises(OSError, match="missing"):
        sha256(tmp_path / "missing")


def test_sha256_of_json_ignores_the_order_of_keys_and_nothing_else() -> None:
    assert sha256_of_json({"a": 1, "b": 2}) == sha256_of_json({"b": 2, "a": 1})
    assert len({sha256_of_json(v) for v in ({"a": 1}, {"a": 1.0}, {"a": "1"}, {"a": b"1"}, {"a": [1]})}) == 5


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch) -> None:
    path = tmp_path / "record.json"
    write_text(path, "old")

    def full(descriptor: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["record.json"]


def test_finite() -> None:
    assert finite([math.inf, (1.0, {"x": -math.inf, 2: True}), "nan", None]) == [
        None,
        [1.0, {"x": None, "2": True}],
        "nan",
        None,
    ]
