"""Steps alternate, ratios are taken within rounds, kept bytes are counted once, records say what they were measured with."""

import subprocess

import pytest
import torch
from torch import nn

import alloralib
from benchmarks import measuring


def test_steps_alternate_in_random_order(monkeypatch) -> None:
    order: list[str] = []
    collected: list[int] = []
    monkeypatch.setattr("gc.collect", lambda: collected.append(len(order)))
    seconds = measuring.alternate({name: lambda name=name: order.append(name) for name in "abc"}, rounds=20, warmup=1)
    assert {name: len(values) for name, values in seconds.items()} == {"a": 20, "b": 20, "c": 20}
    rounds = ["".join(order[k : k + 3]) for k in range(0, 63, 3)]
    assert all(sorted(names) == ["a", "b", "c"] for names in rounds)
    assert len(set(rounds)) == 6  # each step has been behind each other one
    assert collected == list(range(0, 64, 3)), "the garbage collector runs between rounds only"


def test_ratios_are_taken_within_rounds() -> None:
    times = {"a": [1.0, 4.0, 9.0], "b": [1.0, 1.0, 3.0]}
    assert measuring.paired(times, "a", "b") == (2.0, 3.0, 3.5)
    assert measuring.spread(measuring.paired(times, "a", "b")) == "3.00 (2.00 to 3.50)"
    assert measuring.quartiles([5.0]) == [5.0, 5.0, 5.0]


def test_kept_bytes_counts_every_saved_storage_once() -> None:
    x = torch.randn(10, 6, requires_grad=True)
    layer = nn.Linear(6, 5)
    known = [x, *layer.parameters()]
    # x and the weight exist anyway; exp and the product save one output each; a view is no second copy
    assert measuring.kept_bytes(lambda: layer(x), known) == 0
    assert measuring.kept_bytes(lambda: layer(x).exp(), known) == 10 * 5 * 4
    assert measuring.kept_bytes(lambda: layer(x).exp().view(50).exp(), known) == 2 * 10 * 5 * 4
    assert measuring.kept_bytes(lambda: layer(x), layer.parameters()) == 10 * 6 * 4


def test_a_record_says_what_it_was_measured_with(monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", ["benchmarks/step.py", "--rounds", "3", "--data-dir", "/somewhere"])
    found = measuring.environment()
    assert found["command"] == "python -m benchmarks.step --rounds 3"
    assert found["versions"]["alloralib"] == alloralib.__version__
    assert not measuring.is_earlier(found)
    assert "†" not in measuring.label("avx2", found)


def test_code_that_is_not_in_git_has_no_revision(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(measuring, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert measuring.revision() is None


def test_a_record_of_another_minor_version_is_marked(monkeypatch) -> None:
    record = {"versions": {"alloralib": "0.1.0"}}
    monkeypatch.setattr(alloralib, "__version__", "0.1.7")
    assert not measuring.is_earlier(record)
    monkeypatch.setattr(alloralib, "__version__", "0.2.0")
    assert measuring.is_earlier(record)
    assert measuring.label("avx2", record) == "AVX2†"


@pytest.mark.parametrize(("changed", "expected"), [(None, ""), ("src/code.py", "-dirty"), ("benchmarks/records/step.json", "")])
def test_the_revision_is_dirty_if_the_code_differs_from_the_commit(monkeypatch, tmp_path, changed, expected) -> None:
    def git(*words: str) -> str:
        identity = ("-c", "user.name=test", "-c", "user.email=test@example.com", "-c", "commit.gpgsign=false")
        return subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    git("init")
    for name in ("src/code.py", "benchmarks/records/step.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("first")
    git("add", ".")
    git("commit", "--message", "first")
    if changed:
        (tmp_path / changed).write_text("second")
    monkeypatch.setattr(measuring, "ROOT", tmp_path)
    assert measuring.revision() == git("rev-parse", "--short", "HEAD").strip() + expected


def test_newer_records_come_first(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(measuring, "RECORDS", tmp_path)
    for kind, record in {
        "avx2": {"machine": {"instructions": "avx2"}},
        "avx512": {"machine": {}},
        "amx": {"machine": {"instructions": "amx"}, "date": "2026-12-01"},
    }.items():
        measuring.write(record, measuring.record_of("step", kind))
    assert list(measuring.read_all("step")) == ["amx", "avx2", "avx512"]
    assert measuring.read("memory", "avx2") is None
