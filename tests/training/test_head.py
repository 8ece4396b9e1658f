"""How a classifier's head starts and how fast it learns: settings of a run, and what they leave as it was."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from alloralib import RunConfig, open_run, train
from alloralib.cli.main import main
from alloralib.errors import ConfigError, Interrupted
from alloralib.evaluation.scoring import class_logits
from alloralib.records import RunRecord
from alloralib.training import head
from alloralib.training.baselines import planned_rows
from alloralib.training.head import fit_head, head_features, start_head
from alloralib.training.trainer import RunTrainer

from ..classifiers import IMAGES, TEXTS, save_images, save_text
from ..cli.commands import refused
from ..tiny import save
from ..trained import command, jsonl, make_images, sentences
from .processes import sigterm_in_step
from .test_baselines import trainer_of

CLASSES = {"good": "good", "great": "good", "fine": "fine", "bad": "bad", "awful": "bad", "poor": "bad"}


def write(path: Path, texts: list[tuple[str, bool]]) -> str:
    return jsonl(path, [{"text": text, "label": "pos" if good else "neg"} for text, good in texts])


@pytest.fixture
def rows(tmp_path) -> str:
    return write(tmp_path / "rows.jsonl", sentences(80))


def layer_of(trainer: RunTrainer) -> Any:
    """The layer that makes the logits of a tiny Llama or BERT."""
    base = trainer.run.model.get_base_model()
    return (base.score if hasattr(base, "score") else base.classifier).modules_to_save["default"]


def logits_of(trainer: RunTrainer) -> torch.Tensor:
    """Of the training rows that the run sees."""
    examples = trainer.run.examples["train"].select(planned_rows(trainer))
    return class_logits(trainer.model, examples, trainer.run.collate, 8)


@pytest.mark.parametrize("name", [*TEXTS, *IMAGES])
def test_the_logits_are_the_decision_function_of_scikit_learn(name: str, tmp_path, monkeypatch) -> None:
    """For all poolings, heads of several layers, heads without a bias, and two and three classes."""
    if name in TEXTS:
        data = jsonl(tmp_path / "rows.jsonl", [{"text": t, "label": CLASSES[t.split()[-1]]} for t, _ in sentences(60)])
        settings: dict[str, Any] = {"task": "classification", "model": save_text(name, tmp_path / "model"), "data": data}
    else:
        settings = {"task": "image-classification", "data": make_images(tmp_path / "images")}
        settings |= {"model": save_images(name, tmp_path / "model")}
        settings |= {"target_modules": "convolution"} if name == "resnet" else {}
    fits: list[tuple[Any, Any]] = []
    fit = head.logistic_regression

    def kept(features: Any, targets: Any, **more: Any) -> Any:
        fits.append((features, fit(features, targets, **more)))
        return fits[0][1]

    monkeypatch.setattr(head, "logistic_regression", kept)
    trainer = trainer_of(tmp_path, **settings, head_start="logistic")
    found = start_head(trainer)["head"]
    features, model = fits[0]
    decision = torch.from_numpy(np.asarray(model.decision_function(features), dtype=np.float32))
    logits = logits_of(trainer)
    if decision.dim() == 1:
        logits = logits[:, 1] - logits[:, 0]
    torch.testing.assert_close(logits, decision, rtol=1e-4, atol=1e-4)
    assert float(np.square(features).mean()) == pytest.approx(1, rel=1e-4)
    assert found["C"] in np.logspace(-3, 2, 6)
    assert found["layer"].split(".")[0] in ("classifier", "score")
    assert found["rows"] == len(logits)


def test_a_base_whose_features_separate_the_classes_answers_before_any_step(tiny_llama, rows, tmp_path, capsys) -> None:
    flags: dict[str, Any] = {"task": "classification", "model": tiny_llama, "data": rows, "test_share": 0.3, "max_steps": 12}
    assert main(command(tmp_path, **flags, learning_rate=1e-3, head_start="logistic")) == 0
    record = RunRecord.read(tmp_path / "run" / "record.json")
    assert record.metrics["before"]["accuracy"] > 0.95
    assert record.metrics["after"]["accuracy"] > 0.95
    assert record.config["head_start"] == "logistic"
    assert record.preflight["head"]["cross_validated"] is True
    said = f"score starts as logistic regression on the features of 56 training rows (C = {record.preflight['head']['C']:g}"
    assert said in capsys.readouterr().err


def test_stock_peft_loads_what_was_saved(tiny_llama, rows, tmp_path) -> None:
    flags: dict[str, Any] = {"task": "classification", "model": tiny_llama, "data": rows, "max_steps": 3}
    assert main(command(tmp_path, **flags, head_start="logistic", head_learning_rate=0.05)) == 0
    run = open_run(tmp_path / "run")
    config = AutoConfig.from_pretrained(tmp_path / "run", subfolder="model_config")
    stock = PeftModel.from_pretrained(
        AutoModelForSequenceClassification.from_pretrained(tiny_llama, config=config), run.directory
    )
    inputs = {
        k: v for k, v in run.processor(["film good", "plot"], padding=True, return_tensors="pt").items() if "type" not in k
    }
    with torch.no_grad():
        torch.testing.assert_close(stock.eval()(**inputs).logits, run.model(**inputs).logits, rtol=0, atol=0)
    proof, _ = run.export(tmp_path / "merged", "merged")
    assert proof.difference <= 1e-5 < proof.change


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_sixteen_bits(name: str, rows, tmp_path) -> None:
    """Rounding is not taken for logits that another layer makes, and the fit in float32 survives it."""
    trainer = trainer_of(tmp_path, save_text(name, tmp_path / "model"), rows, head_start="logistic", dtype="bfloat16")
    start_head(trainer)
    layer, examples = layer_of(trainer), trainer.run.examples["train"]
    assert layer.weight.dtype == torch.bfloat16
    features, targets = head_features(trainer, layer, examples), list(examples["labels"])
    fitted = fit_head(features.numpy(), targets, 2, intercept=layer.bias is not None)
    losses = [cross_entropy(z, torch.tensor(targets)) for z in (logits_of(trainer), features @ fitted.weight.T + fitted.bias)]
    torch.testing.assert_close(losses[0], losses[1], rtol=0.02, atol=0)


@pytest.mark.parametrize("name", ["bert", "llama", "roberta"])
def test_zero_gives_every_class_the_same_probability(name: str, rows, tmp_path) -> None:
    trainer = trainer_of(tmp_path, save_text(name, tmp_path / "model"), rows, head_start="zero")
    assert start_head(trainer)["head"]["start"] == "zero"
    assert bool((logits_of(trainer).softmax(dim=-1) == 0.5).all())


def test_zero_trains(tiny_llama, rows, tmp_path) -> None:
    """No gradient reaches the adapter at first, and the preflight does not take that for a mistake."""
    flags: dict[str, Any] = {"task": "classification", "model": tiny_llama, "data": rows, "test_share": 0.3}
    assert main(command(tmp_path, **flags, head_start="zero")) == 0
    record = RunRecord.read(tmp_path / "run" / "record.json")
    assert record.metrics["before"]["loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert record.metrics["after"]["accuracy"] > 0.9
    assert not any("no gradient" in warning for warning in record.preflight["warnings"])


def test_only_the_training_rows_that_the_run_sees_are_read(tiny_llama, tmp_path) -> None:
    """Other texts and labels in the test rows, or other labels in training rows that the run does not reach, change nothing."""
    texts = sentences(120)
    data, test = write(tmp_path / "data.jsonl", texts[:80]), write(tmp_path / "test.jsonl", texts[80:])
    settings: dict[str, Any] = {"head_start": "logistic", "max_steps": 4, "batch_size": 8, "overwrite": True}

    def fitted(data: str, test: str) -> tuple[RunTrainer, torch.Tensor]:
        trainer = trainer_of(tmp_path, tiny_llama, data, test_data=test, **settings)
        start_head(trainer)
        return trainer, layer_of(trainer).weight.detach().clone()

    trainer, weight = fitted(data, test)
    flipped = write(tmp_path / "flipped.jsonl", [(text, not good) for text, good in texts[80:]])
    assert torch.equal(fitted(data, flipped)[1], weight)
    others = write(tmp_path / "others.jsonl", [(text[::-1], good) for text, good in texts[80:]])
    assert torch.equal(fitted(data, others)[1], weight)
    planned = set(planned_rows(trainer))
    assert len(planned) == 32
    changed = [(text, good if row in planned else not good) for row, (text, good) in enumerate(texts[:80])]
    assert torch.equal(fitted(write(tmp_path / "changed.jsonl", changed), test)[1], weight)
    turned = [(text, good if row not in planned else not good) for row, (text, good) in enumerate(texts[:80])]
    assert not torch.equal(fitted(write(tmp_path / "turned.jsonl", turned), test)[1], weight)


def test_a_trained_head_is_kept_or_replaced_and_that_is_said(tiny_llama, rows, tmp_path) -> None:
    config = AutoConfig.from_pretrained(
        tiny_llama, id2label={0: "neg", 1: "pos"}, label2id={"neg": 0, "pos": 1}, pad_token_id=0
    )
    model = AutoModelForSequenceClassification.from_pretrained(tiny_llama, config=config)
    own = model.score.weight.detach().clone()
    base = save(tmp_path / "base", model, AutoTokenizer.from_pretrained(tiny_llama))
    kept = trainer_of(tmp_path, base, rows)
    assert start_head(kept) == {}
    assert torch.equal(layer_of(kept).weight, own)
    for start in ("zero", "logistic"):
        trainer = trainer_of(tmp_path, base, rows, head_start=start)
        found = start_head(trainer)["head"]
        assert not torch.equal(layer_of(trainer).weight, own)
        assert head.describe(found).endswith("in place of the values that the base was trained to")
        assert torch.equal(trainer.run.model.get_base_model().score.original_module.weight, own), "the frozen base changed"
    new = start_head(trainer_of(tmp_path, tiny_llama, rows, head_start="zero"))["head"]
    assert head.describe(new) == "score starts at zero"


def test_logits_that_are_not_one_linear_layer_are_refused(tiny_llama, rows, tmp_path) -> None:
    trainer = trainer_of(tmp_path, tiny_llama, rows, head_start="logistic")
    before = layer_of(trainer).weight.detach().clone()

    def capped(module: Any, args: Any, output: Any) -> Any:
        output.logits = output.logits.tanh() * 3
        return output

    trainer.run.model.get_base_model().register_forward_hook(capped)
    with pytest.raises(ConfigError, match=r"not one linear layer[\s\S]*--head-start random"):
        start_head(trainer)
    assert torch.equal(layer_of(trainer).weight, before)
    assert not layer_of(trainer)._forward_hooks


def test_rows_of_one_class_are_refused(tiny_llama, rows, tmp_path, capsys) -> None:
    words = command(tmp_path, task="classification", model=tiny_llama, data=rows, head_start="logistic")
    words[words.index("--max-steps") + 1] = words[words.index("--batch-size") + 1] = "1"
    refused(words, tmp_path, capsys, r"have one class[\s\S]*--head-start random")


@pytest.mark.parametrize("setting", [{"head_start": "zero"}, {"head_start": "logistic"}, {"head_learning_rate": 0.1}])
def test_a_language_model_has_no_head(setting: dict[str, Any]) -> None:
    flag = "--" + next(iter(setting)).replace("_", "-")
    with pytest.raises(ConfigError, match=rf"task=causal-lm has no head[\s\S]*leave {flag} out"):
        RunConfig.of({"task": "causal-lm", "model": "m", "data": "d", "output_dir": "o"} | setting)


def test_a_class_that_no_row_has_is_the_least_probable() -> None:
    features = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    targets = [1 if x[0] > 0 else 3 for x in features]
    fitted = fit_head(features, targets, 4)
    logits = features @ fitted.weight.numpy().T + fitted.bias.numpy()
    assert (logits.argmax(axis=1) == targets).mean() > 0.9
    assert logits[:, [0, 2]].max() <= logits[:, [1, 3]].min() + 1e-5


def test_a_class_of_one_row_is_not_cross_validated() -> None:
    features = np.eye(4, dtype=np.float32)
    fitted = fit_head(features, [0, 0, 1, 2], 3, intercept=False)
    assert (fitted.C, fitted.cross_validated) == (1.0, False)
    assert not fitted.bias.any()
    expected = LogisticRegression(C=1.0, fit_intercept=False, max_iter=200).fit(features * 2, [0, 0, 1, 2])
    torch.testing.assert_close(fitted.weight.double(), torch.from_numpy(expected.coef_ * 2.0).double(), rtol=1e-5, atol=1e-6)
    found = {"start": "logistic", "layer": "score", "replaced": False, "rows": 4, "C": 1.0, "cross_validated": False}
    assert "not cross-validated: a class has one row" in head.describe(found)


@pytest.mark.parametrize("more", [{}, {"method": "lora-plus"}, {"apply_to": "update"}, {"apply_to": "relative"}], ids=str)
def test_the_heads_rate_is_its_own_and_follows_the_schedule(tiny_llama, rows, tmp_path, more: dict[str, Any]) -> None:
    settings = {"learning_rate": 0.01, "head_learning_rate": 0.05, "weight_decay": 0.1, "warmup": 0.2, **more}
    trainer = trainer_of(tmp_path, tiny_llama, rows, **settings)
    trainer.create_optimizer_and_scheduler(10)
    assert trainer.optimizer is not None
    names = {p: name for name, p in trainer.run.model.named_parameters()}
    for _ in range(10):
        rates = {names[p]: group["lr"] for group in trainer.optimizer.param_groups for p in group["params"]}
        assert set(rates) == {name for p, name in names.items() if p.requires_grad}
        adapter = next(rate for name, rate in rates.items() if "lora_A" in name)
        for name, rate in rates.items():
            share = 5 if "score" in name else 16 if "lora_B" in name and "method" in more else 1
            assert rate == pytest.approx(share * adapter), name
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    assert trainer.lr_scheduler.get_last_lr()[0] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("more", [{}, {"apply_to": "relative"}], ids=str)
def test_the_same_rate_changes_nothing(rows, tmp_path, more: dict[str, Any]) -> None:
    """Weight decay included: that of transformers' Trainer leaves biases and norms out. BERT's head has a pooler and biases."""
    model, files = save_text("bert", tmp_path / "model"), []
    for rate in (None, 0.01, 0.02):
        settings = {"task": "classification", "model": model, "data": rows, "output_dir": str(tmp_path / "run"), "r": 2}
        settings |= {"max_steps": 4, "learning_rate": 0.01, "weight_decay": 0.5, "overwrite": True, "skip_baselines": True}
        train(RunConfig.of(settings | {"head_learning_rate": rate} | more))
        files.append((tmp_path / "run" / "adapter_model.safetensors").read_bytes())
    assert files[0] == files[1] != files[2]


def test_stopped_and_resumed_ends_bit_identical(tiny_llama, rows, tmp_path) -> None:
    given = {
        "task": "classification", "model": tiny_llama, "data": rows, "r": 2, "max_steps": 6, "batch_size": 8,
        "checkpoint_every": 2, "method": "lora-plus", "head_start": "logistic", "head_learning_rate": 0.05, "test_share": 0.2,
    }  # fmt: skip
    directories = [tmp_path / "whole", tmp_path / "stopped"]
    configs = [RunConfig.of(given | {"output_dir": str(directory)}) for directory in directories]
    train(configs[0])
    with sigterm_in_step(3), pytest.raises(Interrupted):
        train(configs[1])
    assert main(["train", "--resume", "--output-dir", str(directories[1])]) == 0
    for name in ("adapter_model.safetensors", "predictions.jsonl"):
        assert (directories[0] / name).read_bytes() == (directories[1] / name).read_bytes()
    whole, resumed = (json.loads((directory / "record.json").read_text()) for directory in directories)
    for name in ("metrics", "history"):
        assert whole[name] == resumed[name]
    assert whole["preflight"]["head"] == resumed["preflight"]["head"]
