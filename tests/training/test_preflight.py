"""The preflight reports the truth, catches mistakes, and changes nothing."""

import json
from pathlib import Path

import pytest
import torch
from peft import get_peft_model

from alloralib import AlloraConfig
from alloralib.cli.main import main
from alloralib.errors import TrainingError
from alloralib.training import preflight
from alloralib.training.callbacks import StopOnSignal
from alloralib.training.config import RunConfig
from alloralib.training.directory import RunDirectory
from alloralib.training.prepare import prepare
from alloralib.training.run import dry_run, train
from alloralib.training.trainer import RunTrainer

from ..adapters.models import gradients, llama, tokens
from ..cli.test_train import contents


@pytest.fixture
def settings(tiny_llama, reviews, tmp_path) -> dict:
    return {
        "task": "causal-lm", "model": tiny_llama, "data": str(reviews), "output_dir": str(tmp_path / "run"), "r": 2,
        "max_steps": 3, "batch_size": 4, "prompt_column": "prompt", "completion_column": "completion",
    }  # fmt: skip


def test_it_marks_what_is_trained_and_counts(settings, tmp_path) -> None:
    before = contents(tmp_path)
    found = dry_run(RunConfig.of(settings))
    assert contents(tmp_path) == before
    assert found["example"].endswith("⟧")
    assert found["example"].count("⟦") == 1
    trained = found["example"].split("⟦")[1].rstrip("⟧").split()
    assert trained in (["fine", "</s>"], ["poor", "</s>"], ["fine</s>"], ["poor</s>"])
    rows = found["data"]["rows"]
    assert found["data"]["trained_tokens"] == 2 * rows
    assert 0 <= found["data"]["padding_share"] < 1
    assert found["cost"]["steps"] == 3
    assert found["cost"]["seconds"] > 0
    assert found["warnings"] == []


def test_padding_is_what_the_batches_have(settings) -> None:
    """Counted again from real batches of one epoch."""
    config = RunConfig.of(settings)
    trainer = RunTrainer(prepare(config, RunDirectory(config.output_dir), StopOnSignal()))
    found = preflight.preflight(trainer)
    batches = list(trainer.get_train_dataloader())
    assert found["data"]["padded_tokens"] == sum(batch["input_ids"].numel() for batch in batches)
    assert found["data"]["tokens"] == sum(int(batch["attention_mask"].sum()) for batch in batches)
    assert found["data"]["trained_tokens"] == sum(int((batch["labels"] != -100).sum()) for batch in batches)


def test_the_run_is_the_same_without_it(settings, tmp_path, monkeypatch) -> None:
    config = RunConfig.of(settings | {"method": "allora-d"})
    train(config)
    first = (tmp_path / "run" / "adapter_model.safetensors").read_bytes()
    monkeypatch.setattr(
        "alloralib.training.run.preflight",
        lambda trainer: {"data": {}, "cost": {}, "warnings": [], "adapter": {"modules": 0, "parameters": 0, "whole": []}},
    )
    train(config.model_copy(update={"overwrite": True}))
    assert (tmp_path / "run" / "adapter_model.safetensors").read_bytes() == first


def test_a_stop_token_that_is_cut_off_is_noticed(settings) -> None:
    found = dry_run(RunConfig.of(settings | {"prompt_column": None, "completion_column": None, "max_length": 3}))
    assert any("stop token is never trained" in text for text in found["warnings"])
    assert any("cut at 3 tokens" in text for text in found["warnings"])
    rows = Path(settings["data"]).read_text().splitlines()[1:]
    lengths = {row.split(",")[0]: len(row.split(",")[0].split()) + 1 for row in rows}  # a word a token, and the end of text
    share = 1 - 3 * len(lengths) / sum(lengths.values())  # of all rows; the training rows are a sample of them
    assert found["data"]["truncated_rows"] == found["data"]["rows"]
    assert found["data"]["truncated_share"] == pytest.approx(share, abs=0.05)


def test_answers_that_are_cut_off_are_refused(settings, tmp_path, capsys) -> None:
    words = ["train", *(w for k, v in (settings | {"max_length": 2}).items() for w in ("--" + k.replace("_", "-"), str(v)))]
    assert main(words) == 2
    message = capsys.readouterr().err
    assert "no trained token" in message
    assert "--max-length" in message
    assert not (tmp_path / "run.unfinished").exists()


def test_dry_run_prints_the_settings_and_the_findings(settings, tmp_path, capsys) -> None:
    words = ["train", *(w for k, v in settings.items() for w in ("--" + k.replace("_", "-"), str(v))), "--dry-run"]
    assert main(words) == 0
    out = capsys.readouterr().out
    for part in ("max_steps: 3", "preflight", "⟦", "trained parameters", "GiB"):
        assert part in out
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cost"]["steps"] == 3
    assert not (tmp_path / "run").exists()


def test_float16_on_a_cpu(settings) -> None:
    with pytest.raises(ValueError, match=r"float16 on a CPU[\s\S]*bfloat16"):
        dry_run(RunConfig.of(settings | {"dtype": "float16"}))


def test_no_trained_token() -> None:
    with pytest.raises(TrainingError, match="no token of any row is trained"):
        preflight._check_trained_tokens({"labels": [[-100, -100], [-100]]}, None, [])


def test_labels_out_of_range() -> None:
    with pytest.raises(TrainingError, match=r"labels \[-1, 3\] are outside 0 ... 2"):
        preflight._check_labels({"labels": [0, 3, 1, -1]}, 3)


def test_an_adapter_that_no_gradient_reaches() -> None:
    """A detached branch, a module that the loss does not depend on, and the sound adapter."""
    model = get_peft_model(llama(), AlloraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    with pytest.raises(TrainingError, match="no gradient reaches the adapter"):
        preflight._check_gradients(model, [])
    gradients(model, {"input_ids": tokens(), "labels": tokens()})
    warnings: list[str] = []
    preflight._check_gradients(model, warnings)
    assert warnings == []
    for name, p in model.named_parameters():
        if "layers.0.self_attn.q_proj" in name and p.requires_grad:
            p.grad = torch.zeros_like(p)
    preflight._check_gradients(model, warnings)
    assert "layers.0.self_attn.q_proj" in warnings[0]


def test_tied_weights_give_a_warning(settings, tmp_path) -> None:
    found = dry_run(RunConfig.of(settings | {"target_modules": "embed_tokens,q_proj"}))
    tied = llama().config.tie_word_embeddings
    assert any("shares its weight" in text for text in found["warnings"]) == tied


@pytest.mark.parametrize("compiles", [False, True])
def test_a_run_has_its_element_wise_parts_fused_or_compiled(settings, compiles: bool, monkeypatch) -> None:
    monkeypatch.setattr("alloralib.training.prepare.check_compiling", lambda: None)
    monkeypatch.setattr("alloralib.training.prepare.compile_blocks", lambda model: [])
    config = RunConfig.of(settings | {"compile": compiles})
    model = prepare(config, RunDirectory(config.output_dir), StopOnSignal()).model
    fused = sorted({type(m).__name__ for m in model.modules() if hasattr(m, "_fused_elementwise")})
    assert fused == ([] if compiles else ["LlamaMLP", "LlamaRMSNorm"])
