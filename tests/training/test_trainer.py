"""Language models are trained as TRL's SFTTrainer trains them, without logits where nothing is trained and without TRL."""

import dataclasses
import subprocess
import sys

import pytest
import torch
from peft import get_peft_model
from trl import SFTConfig, SFTTrainer

from alloralib import AlloraConfig, fast_paths
from alloralib.data.language import IGNORED
from alloralib.evaluation import next_token
from alloralib.records import RunRecord
from alloralib.training.batches import BucketBatches, lengths_of
from alloralib.training.callbacks import StopOnSignal
from alloralib.training.config import RunConfig
from alloralib.training.directory import RunDirectory
from alloralib.training.prepare import Run, prepare
from alloralib.training.run import train
from alloralib.training.trainer import RunTrainer

from ..adapters.models import gpt2, llama, mixtral, randomise


@pytest.fixture
def settings(tiny_llama, reviews, tmp_path) -> dict:
    return {
        "task": "causal-lm", "model": tiny_llama, "data": str(reviews), "output_dir": str(tmp_path / "run"), "r": 2,
        "max_steps": 3, "batch_size": 4, "prompt_column": "prompt", "completion_column": "completion", "overwrite": True,
        "optimizer": "sgd", "learning_rate": 0.5, "gradient_accumulation": 2, "schedule": "constant", "warmup": 0.0,
    }  # fmt: skip


def prepared(settings: dict, make) -> Run:
    """A run whose model is `make()`, with an adapter that is not zero."""
    config = RunConfig.of(settings)
    run = prepare(config, RunDirectory(config.output_dir), StopOnSignal())
    model = get_peft_model(make(), AlloraConfig(r=2, eta=1.7, target_modules="all-linear", task_type="CAUSAL_LM"))
    randomise(model)
    model.get_output_embeddings().weight.data.mul_(10)  # a random model has nearly the same loss everywhere
    return dataclasses.replace(run, model=model)


class Twin(SFTTrainer):
    """TRL's trainer with the batches of ours."""

    def _get_train_sampler(self, train_dataset=None):
        self._sampler = BucketBatches(lengths_of(self.train_dataset), self.args.train_batch_size, self.args.data_seed)
        return self._sampler

    def _run_epoch(self, *args, **kwargs):
        self._sampler.set_epoch(kwargs["epoch"])
        super()._run_epoch(*args, **kwargs)


def trls(run: Run) -> SFTTrainer:
    config = run.config
    args = SFTConfig(
        str(run.directory.working), max_steps=config.max_steps, per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation, learning_rate=config.learning_rate, optim="sgd",
        lr_scheduler_type="constant", max_grad_norm=config.max_grad_norm, logging_steps=1, report_to="none", use_cpu=True,
        gradient_checkpointing=config.gradient_checkpointing, bf16=False, save_strategy="no", disable_tqdm=True, seed=0,
        data_seed=0, remove_unused_columns=False, dataset_kwargs={"skip_prepare_dataset": True},
    )  # fmt: skip
    return Twin(run.model, args, train_dataset=run.examples["train"], processing_class=run.processor)


def trained(trainer) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    """The weights after training, and what every step logged."""
    trainer.train()
    logs = [{key: e[key] for key in ("loss", "grad_norm")} for e in trainer.state.log_history if "loss" in e]
    return {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}, logs


def router() -> torch.nn.Module:
    model = mixtral()
    model.config.router_aux_loss_coef = 0.1
    return model


CASES = {
    "prompts-masked": (llama, {}),
    "every-token": (llama, {"prompt_column": None, "completion_column": None}),
    "checkpointing": (llama, {"gradient_checkpointing": True}),
    "gpt2": (gpt2, {}),
    "router": (router, {}),
}


@pytest.mark.parametrize("name", CASES)
def test_it_trains_what_trl_trains(name: str, settings) -> None:
    """Weights, losses and gradient norms of three steps of two batches each."""
    make, more = CASES[name]
    expected, logs = trained(trls(prepared(settings | more, make)))
    assert len(logs) == 3
    for on in (True, False):
        with fast_paths(logits=on):
            got, ours = trained(RunTrainer(prepared(settings | more, make)))
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
        for a, b in zip(ours, logs, strict=True):
            assert a == pytest.approx(b, rel=1e-4)


def test_a_router_without_its_loss_is_told_apart(settings, monkeypatch) -> None:
    expected, _ = trained(trls(prepared(settings, router)))
    monkeypatch.setattr("alloralib.training.trainer._router_coefficient", lambda model: 0.0)
    got, _ = trained(RunTrainer(prepared(settings, router)))
    assert any(not torch.allclose(got[name], weight, rtol=1e-4, atol=1e-5) for name, weight in expected.items())


def test_the_mean_of_means_is_told_apart(settings) -> None:
    """Batches of a step hold different numbers of trained tokens; each token counts the same."""
    more = {"prompt_column": None, "completion_column": None}
    expected, _ = trained(RunTrainer(prepared(settings | more, llama)))
    trainer = RunTrainer(prepared(settings | more, llama))
    trainer.model_accepts_loss_kwargs = False
    got, _ = trained(trainer)
    assert any(not torch.allclose(got[name], weight, rtol=1e-4, atol=1e-5) for name, weight in expected.items())


@pytest.mark.parametrize("step_tokens", [None, torch.tensor(5)])
def test_a_batch_without_a_label(step_tokens, settings) -> None:
    """Loss and gradient are zero, but exist: every process of a distributed run needs gradients."""
    trainer = RunTrainer(prepared(settings, llama))
    batch = next(iter(trainer.get_train_dataloader()))
    del batch["row"]
    batch["labels"] = torch.full_like(batch["labels"], IGNORED)
    loss = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=step_tokens)
    loss.backward()
    assert loss.item() == 0
    assert all((p.grad == 0).all() for p in trainer.model.parameters() if p.requires_grad)


def record(settings: dict) -> RunRecord:
    train(RunConfig.of(settings))
    return RunRecord.read(f"{settings['output_dir']}/record.json")


def test_logits_are_made_of_trained_tokens_only_and_the_record_does_not_change(settings, monkeypatch) -> None:
    rows_at_the_head: list[int] = []
    right = next_token.linear_cross_entropy

    def counted(hidden, *rest):
        rows_at_the_head.append(len(hidden))
        return right(hidden, *rest)

    monkeypatch.setattr(next_token, "linear_cross_entropy", counted)
    ours = record(settings)
    assert rows_at_the_head
    assert set(rows_at_the_head) <= {2 * 2, 2 * 3, 2 * 4}  # two tokens of each row are trained: the answer and the end
    rows_at_the_head.clear()
    with fast_paths(logits=False):
        plain = record(settings)
    assert rows_at_the_head == []
    for a, b in zip(ours.history, plain.history, strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    for when in ("before", "after"):
        assert ours.metrics[when] == pytest.approx(plain.metrics[when], rel=1e-5)


def test_a_shift_by_one_is_told_apart(settings, monkeypatch) -> None:
    ours = record(settings)
    monkeypatch.setattr(next_token, "pad", lambda mask, _: torch.nn.functional.pad(mask, (1, 0)))
    wrong = record(settings)
    assert wrong.history[0]["loss"] != pytest.approx(ours.history[0]["loss"], rel=1e-5)


def test_a_wrapper_that_copies_what_the_model_returns_does_not_end_the_chunked_loss(settings, monkeypatch) -> None:
    """As DDP does. The gradient must come from the wrapper's outputs, or DDP takes every parameter for unused."""
    trainer = RunTrainer(prepared(settings, llama))
    batch = next(iter(trainer.get_train_dataloader()))
    labels, returned = batch.pop("labels"), []

    def wrapped(**inputs):
        output = trainer.model(**inputs)
        output.logits = output.logits.clone()
        returned.append(output.logits)
        return output

    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    for _ in range(2):
        loss = next_token.score_next_tokens(trainer.model, inputs, labels, call=wrapped).loss.sum()
    assert [logits.shape[-1] for logits in returned] == [1, 1], "a loss per position, and no logits"
    assert torch.autograd.grad(loss, returned[-1])[0].count_nonzero() == (labels[:, 1:] != IGNORED).sum()
    expected = next_token.score_next_tokens(trainer.model, inputs, labels).loss.sum()
    torch.testing.assert_close(loss, expected)


def test_an_adapted_output_layer_is_trained(settings) -> None:
    ours = record(settings | {"target_modules": ["q_proj", "lm_head"], "max_steps": 6})
    assert ours.history[-1]["loss"] < ours.history[0]["loss"]
    assert any("lm_head" in name for name in ours.rule[0]["layers"])


IMPORTS = """
import sys
import alloralib.training.run, alloralib.training.preflight, alloralib.data.chat, alloralib.cli.train
assert "trl" not in sys.modules, sorted(name for name in sys.modules if name.startswith("trl"))
"""


def test_training_imports_no_trl() -> None:
    ran = subprocess.run([sys.executable, "-W", "ignore", "-c", IMPORTS], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_a_run_without_trl_is_the_same_run(settings, monkeypatch) -> None:
    ours = record(settings)
    monkeypatch.setitem(sys.modules, "trl", None)
    without = record(settings)
    assert without.history == ours.history
    assert "trl" in ours.versions
    assert "trl" not in without.versions
