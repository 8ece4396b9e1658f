"""While it runs: validation, the best weights, early stopping, what the rule does, and a NaN or infinite loss."""

import json
import math

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file

from alloralib import AlloraConfig, make_config
from alloralib.adapters.monitor import layer_states, summary
from alloralib.cli.main import main
from alloralib.ops import reference
from alloralib.records import RunRecord

from ..adapters.models import llama, randomise
from ..cli.test_train import base, with_  # noqa: F401 (a fixture)


def record(tmp_path) -> RunRecord:
    return RunRecord.read(tmp_path / "run" / "record.json")


def test_layer_states_are_those_of_the_matrices() -> None:
    model = get_peft_model(llama(), AlloraConfig(r=3, eta=1.7, target_modules=["q_proj", "embed_tokens"]))
    randomise(model)
    states = layer_states(model)
    assert len(states) == 3
    for name, state in states.items():
        norms = torch.linalg.vector_norm(model.get_submodule(name).get_delta_weight("default"), dim=-1)
        if "embed_tokens" in name:  # stored as tokens x features; the rule's rows are features
            norms = torch.linalg.vector_norm(model.get_submodule(name).get_delta_weight("default"), dim=0)
        s = reference.scale(norms, 1.7)
        expected = [norms.mean(), norms.max(), s.min(), s.mean()]
        torch.testing.assert_close(torch.tensor(state), torch.stack(expected), rtol=1e-4, atol=1e-6)
    assert summary(states, 0.1)["rule/effective_learning_rate"] == pytest.approx(
        0.1 * sum(s.mean_scale for s in states.values()) / 3
    )


def test_stock_lora_has_norms_and_no_scale() -> None:
    model = get_peft_model(llama(), make_config("lora-x-eta", r=2, eta=2.0, target_modules=["q_proj"]))
    randomise(model)
    for name, state in layer_states(model).items():
        delta = model.get_submodule(name).get_delta_weight("default")
        assert state.mean_norm == pytest.approx(torch.linalg.vector_norm(delta, dim=1).mean().item(), rel=1e-4)
        assert state.min_scale is None


def test_the_record_keeps_what_the_rule_did(base, tmp_path) -> None:  # noqa: F811
    assert main(with_(base, max_steps=6, rule_every=2, learning_rate=0.05)) == 0
    rule = record(tmp_path).rule
    assert [entry["step"] for entry in rule] == [1, 2, 4, 6]
    assert len(rule[0]["layers"]) == record(tmp_path).adapter["modules"]
    first, last = (list(entry["layers"].values()) for entry in (rule[0], rule[-1]))
    assert sum(s[0] for s in last) > sum(s[0] for s in first)
    assert all(0 < s[2] <= s[3] <= 2.0 for s in last)


def test_best_weights_are_those_of_the_lowest_validation_loss(base, tmp_path) -> None:  # noqa: F811
    """Validation rows with the labels the wrong way round: training makes their loss worse."""
    wrong = tmp_path / "wrong.csv"
    wrong.write_text("text,label\nvery good music,neg\nvery bad music,pos\nthe great ending,neg\nan awful ending,pos\n")
    words = with_(
        base, validation_data=wrong, evaluate_every=1, max_steps=24, learning_rate=0.02, schedule="constant", warmup=0
    )
    assert main(words) == 0
    kept = record(tmp_path)
    losses = [entry["loss"] for entry in kept.validation["history"]]
    best = kept.validation["best_step"]
    assert losses[best - 1] == min(losses)
    assert best < 24, "the test needs a run that gets worse"
    weights = load_file(tmp_path / "run" / "adapter_model.safetensors")
    assert main([*with_(words, max_steps=best), "--overwrite"]) == 0
    again = load_file(tmp_path / "run" / "adapter_model.safetensors")
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_early_stopping(base, tmp_path) -> None:  # noqa: F811
    words = with_(
        base, validation_share=0.3, evaluate_every=1, patience=2, max_steps=40, learning_rate=0.3, schedule="constant", warmup=0
    )
    assert main(words) == 0
    kept = record(tmp_path)
    assert len(kept.history) < 40
    assert kept.history[-1]["step"] == kept.validation["best_step"] + 2


def test_the_test_rows_choose_nothing(base, tmp_path) -> None:  # noqa: F811
    """Other test rows, same training and validation rows: the same weights."""
    held = tmp_path / "held.csv"
    held.write_text("text,label\nmusic good,pos\nmusic bad,neg\n")
    words = with_(base, test_share=None, test_data=held, validation_share=0.3, evaluate_every=1, max_steps=6)
    assert main(words) == 0
    first = (tmp_path / "run" / "adapter_model.safetensors").read_bytes()
    held.write_text("text,label\nmusic good,neg\nmusic bad,pos\n")
    assert main([*words, "--overwrite"]) == 0
    assert (tmp_path / "run" / "adapter_model.safetensors").read_bytes() == first


def test_a_nan_or_infinite_loss_stops_the_run(base, tmp_path, capsys) -> None:  # noqa: F811
    words = with_(base, max_steps=30, learning_rate=1e30, schedule="constant", warmup=0, checkpoint_every=1, optimizer="sgd")
    assert main(words) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    for part in ("at step", "training rows", "reviews.csv, row", "checkpoint of step", "remedy"):
        assert part in message, message
    assert not (tmp_path / "run").exists()
    checkpoints = sorted((tmp_path / "run.unfinished" / "checkpoints").iterdir())
    assert checkpoints
    weights = load_file(checkpoints[0] / "adapter.safetensors")
    assert all(torch.isfinite(w).all() for w in weights.values())


def test_rows_of_the_bad_batch_are_named(base, tmp_path, capsys, monkeypatch) -> None:  # noqa: F811
    """The row that makes the loss NaN is among those that the message names, and it is found again in the file."""
    import alloralib.training.trainer as trainer

    right = trainer.with_rows

    def poisoned(collate):
        inner = right(collate)

        def collated(examples):
            batch = inner(examples)
            if armed and 7 in batch["row"].tolist():
                batch["labels"] = batch["labels"].float() * math.nan  # a loss over these raises or is NaN
                batch.pop("labels")
                batch["inputs_embeds"] = torch.full((*batch.pop("input_ids").shape, 32), math.nan)
                batch["labels"] = torch.zeros(len(examples), dtype=torch.long)
            return batch

        return collated

    armed: list[int] = []
    monkeypatch.setattr(trainer, "with_rows", poisoned)
    monkeypatch.setattr("alloralib.training.run.preflight", _armed(armed))
    assert main(with_(base, epochs=2, max_steps=None)) == 2
    message = capsys.readouterr().err
    assert "nan at step" in message
    assert " 8" in message.split("training rows")[1].split("(")[0] + ","


def _armed(armed: list[int]):
    from alloralib.training.preflight import preflight

    def checked(*args):
        found = preflight(*args)
        armed.append(1)
        return found

    return checked


def test_tensorboard_gets_the_layers(base, tmp_path) -> None:  # noqa: F811
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert main(with_(base, report_to="tensorboard", validation_share=0.3, evaluate_every=2)) == 0
    file = next((tmp_path / "run").rglob("events.out.tfevents*"))
    events = EventAccumulator(str(file))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {"train/loss", "eval/loss", "train/rule/row_norm_mean", "train/rule/effective_learning_rate"} <= tags
    assert any("q_proj" in tag and tag.endswith("max_norm") for tag in tags)
    assert json.loads((tmp_path / "run" / "record.json").read_text())["config"]["report_to"] == ["tensorboard"]


def test_a_reporter_that_is_not_installed(base, tmp_path, capsys) -> None:  # noqa: F811
    assert main(with_(base, report_to="trackio")) == 2
    assert "pip install trackio" in capsys.readouterr().err
    assert main(with_(base, report_to="tensorbord")) == 2
    assert "tensorboard" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("task", ["classification", "causal-lm"])
def test_accumulated_micro_batches_are_one_batch(base, tmp_path, task: str) -> None:  # noqa: F811
    """With SGD, four rows twice and eight rows once take the same step."""
    lines = (tmp_path / "reviews.csv").read_text().splitlines()
    (tmp_path / "few.csv").write_text("\n".join(lines[:17]) + "\n")
    (tmp_path / "held.csv").write_text("\n".join([lines[0], *lines[30:40]]) + "\n")
    words = with_(
        base, data=tmp_path / "few.csv", test_share=None, test_data=tmp_path / "held.csv", task=task, optimizer="sgd",
        learning_rate=0.5, max_steps=1, schedule="constant", warmup=0,
    )  # fmt: skip
    assert main(with_(words, batch_size=16)) == 0
    once = load_file(tmp_path / "run" / "adapter_model.safetensors")
    assert main([*with_(words, batch_size=4, gradient_accumulation=4), "--overwrite"]) == 0
    twice = load_file(tmp_path / "run" / "adapter_model.safetensors")
    moved = [name for name in once if "lora_B" in name]
    assert moved
    for name in moved:
        torch.testing.assert_close(twice[name], once[name], rtol=1e-3, atol=1e-6)
