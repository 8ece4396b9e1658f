"""Which arms a step benchmark runs, what its table and targets show, and what counts as the ALLoRA rule."""

import pytest
import torch

from benchmarks import arms, memory, step

from .models import R, llama

TARGET_ARMS = ("frozen", "allora-train", "peft-lora", "peft-lora-dropout", "peft-dora")


def record(**seconds: list[float]) -> dict:
    return {"seconds": {name.replace("_", "-"): values for name, values in seconds.items()}, "rule_seconds": [0.01, 0.02, 0.03]}


def test_the_arms_of_the_targets_run_in_one_command() -> None:
    assert sorted(step.chosen("smollm2", {}, TARGET_ARMS)) == sorted(TARGET_ARMS)
    assert step.chosen("smollm2", {}, ("peft-lora",)) == ["frozen", "peft-lora"]
    assert step.chosen("smollm2", {}, ()) == list(arms.TITLES)
    assert "litgpt" not in step.chosen("smollm2", {"litgpt": "No module named 'litgpt'"}, ())
    assert not set(arms.CHUNKED) & set(step.chosen("minilm", {}, ())), "a classifier has no labels of tokens"
    with pytest.raises(SystemExit, match="unknown arms: peft-lore; known: frozen, allora-train"):
        step.chosen("smollm2", {}, ("peft-lore",))


def test_the_table_shows_multiples_of_the_frozen_step_and_no_removed_arm() -> None:
    old = record(frozen=[1.0, 2.0, 4.0], allora=[1.1, 2.4, 6.0], allora_ungrouped=[9.0, 9.0, 9.0])
    new = record(frozen=[0.5, 0.5, 0.5], allora_train=[0.5, 0.6, 0.7])
    assert step.table({"old": old, "new": new}).splitlines() == [
        "| step of | old | new |",
        "|---|---|---|",
        "| frozen model | 2.00 s | 500 ms |",
        "| **ALLoRA, as `allora train`** |  | 1.20 (1.10 to 1.30) |",
        "| **ALLoRA** | 1.20 (1.15 to 1.35) |  |",
    ]


def test_a_missed_target_is_shown_as_missed() -> None:
    met = record(frozen=[1.0] * 3, allora_train=[1.0] * 3, peft_lora=[2.0] * 3)
    missed = record(frozen=[1.0] * 3, allora_train=[1.2] * 3, peft_lora=[1.2] * 3)
    rows = step.targets({"met": met, "missed": missed})
    assert rows[0] == (
        "| step time, of the frozen model | 1.08 | 1.000 (1.000 to 1.000) met | 1.200 (1.200 to 1.200) **missed** |"
    )
    assert rows[1] == "| step time, of PEFT LoRA | 0.95 | 0.500 (0.500 to 0.500) met | 1.000 (1.000 to 1.000) **missed** |"
    assert rows[3] == "| step time, of PEFT DoRA | 0.70 | not measured | not measured |"
    kept = {"arms": {"allora-train": {"kept": 80}, "peft-lora": {"kept": 100}}}
    assert memory.target(kept) == "0.800 **missed**"
    assert memory.target(None) == "not measured"


def test_a_record_without_the_step_of_allora_train_uses_the_chunked_loss() -> None:
    assert step.ours(record(frozen=[1.0], allora_chunked=[1.0], allora_train=[1.0], allora=[1.0])) == "allora-train"
    assert step.ours(record(frozen=[1.0], allora_chunked=[1.0], allora=[1.0])) == "allora-chunked"
    assert step.ours(record(frozen=[1.0], allora=[1.0])) is None


def test_the_share_of_the_rule_is_that_of_an_allora_step() -> None:
    assert step.rule_share(record(allora=[1.0, 2.0, 3.0], allora_train=[1.0] * 3)) == pytest.approx(0.01)
    assert step.rule_share(record(frozen=[1.0], allora_train=[0.4] * 3)) == pytest.approx(0.05)
    assert step.rule_share(record(frozen=[1.0])) is None


def test_the_rule_alone_covers_every_layer(monkeypatch) -> None:
    from alloralib.ops import scale

    arm = arms.build("allora", *llama(), R)
    norms: list[torch.Size] = []
    real = scale.row_norms
    monkeypatch.setattr(scale, "row_norms", lambda A, B: norms.append(B.shape) or real(A, B))
    step.rule(arm.model)()
    assert len(norms) == len(arms.linear_names(llama()[0])) == 14
