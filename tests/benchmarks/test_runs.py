"""Each benchmark runs on a tiny model, and its tables read the record that it makes. The times mean nothing."""

import json
import sys

import pytest

from benchmarks import arms, cpu, growth, measuring, memory, models, profile_step, stacks, step

from .models import LENGTH, ROWS, R, llama
from .test_step import TARGET_ARMS


@pytest.fixture(autouse=True)
def records(monkeypatch, tmp_path):
    monkeypatch.setattr(measuring, "RECORDS", tmp_path)
    monkeypatch.setattr("gc.collect", lambda: None)  # takes longer than all else here
    for name in ("smollm2", "minilm"):
        monkeypatch.setitem(models.MODELS, name, lambda rows, length, dtype: llama())
    monkeypatch.setattr(models, "smollm2", lambda rows, length, dtype: llama())
    return tmp_path


def test_the_five_arms_of_the_targets_in_one_command(monkeypatch, capsys) -> None:
    sizes = f"--rows {ROWS} --length {LENGTH} --r {R} --rounds 2 --warmup 0"
    words = [*sizes.split(), "--arms", *TARGET_ARMS]
    monkeypatch.setattr(sys, "argv", ["step.py", *words])
    step.main()
    record = measuring.read("step")
    assert record is not None
    assert sorted(record["seconds"]) == sorted(TARGET_ARMS)
    assert all(len(seconds) == 2 for seconds in (*record["seconds"].values(), record["rule_seconds"]))
    assert "not measured" not in "".join(step.targets({"here": record}))
    assert "**ALLoRA, as `allora train`**" in capsys.readouterr().out


def test_the_memory_of_an_arm(monkeypatch, capsys) -> None:
    words = ["--arm", "allora-train", "--rows", str(ROWS), "--length", str(LENGTH), "--r", str(R)]
    monkeypatch.setattr(sys, "argv", ["memory.py", *words])
    memory.main()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert 0 < found["kept"] < found["before"] <= found["peak"]
    table = memory.table({"arms": {"allora-train": found, "peft-lora": found, "allora-unfused": found}})
    assert [line.split(" | ")[0] for line in table.splitlines()[2:]] == [
        f"| {arms.TITLES[n]}" for n in ("allora-train", "peft-lora")
    ]


def test_the_profile() -> None:
    record = profile_step.measure(ROWS, LENGTH, R, rounds=1)
    assert record["operations"]["frozen"][profile_step.H] == 0
    assert all(record["operations"]["allora"][what] > 0 for what in (profile_step.H, profile_step.OUT, profile_step.P))
    assert record["seconds"]["allora"][profile_step.NODE] > 0, "the node's name is not the profiler's"
    assert "| ALLoRA rule: row norms and scale |" in profile_step.table({"here": record})


def test_a_point_of_the_stacks(monkeypatch) -> None:
    monkeypatch.setattr(stacks, "FEWEST", 2)
    point = stacks.Point(width=192, r=R, tokens=stacks.ROWS * LENGTH)
    record = {"points": [stacks.measure(point, seconds=0)]}
    assert stacks.find(record, point) is record["points"][0]
    assert len(record["points"][0]["seconds"]["allora"]) == 2
    monkeypatch.setattr(growth, "CENTER", point)
    assert "| center |" in growth.table({"here": record})


def test_the_products(monkeypatch) -> None:
    monkeypatch.setattr(cpu, "FROZEN", ((32, 32),))
    monkeypatch.setattr(cpu, "NARROW", ((4, 32),))
    monkeypatch.setattr(cpu, "COLD", 2**14)
    lines = cpu.table({"products": cpu.products(rounds=1)}).splitlines()
    assert lines[2].startswith("| 32 x 32 | ")
    assert lines[2].endswith(" |  |  |"), "a frozen weight has no sum over tokens"
    assert lines[3].startswith("| 4 x 32 | ")
    assert "|  |" not in lines[3]
