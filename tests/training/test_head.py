"""A language model is trained as by TRL's own scores, without logits where nothing is learnt."""

import dataclasses

import datasets
import pytest
import torch
from peft import get_peft_model
from trl import SFTTrainer

from alloralib import AlloraConfig, fast_paths
from alloralib.evaluation import next_token
from alloralib.records import RunRecord
from alloralib.training.config import RunConfig
from alloralib.training.head import score_labels_only
from alloralib.training.run import train

from ..adapters.models import gpt2, llama, mixtral, randomise
from .test_other_trainers import arguments, tokenizer

WORDS = ["the", "cat", "dog", "sat", "ran", "on", "under", "mat", "road", "yes", "no"]


def rows(form: str) -> datasets.Dataset:
    g = torch.Generator().manual_seed(0)
    lengths = (4, 9, 6, 12, 5, 8, 7, 3, 6, 4, 10, 5)
    texts = [" ".join(WORDS[i] for i in torch.randint(len(WORDS), (n,), generator=g).tolist()) for n in lengths]
    if form == "prompt":
        return datasets.Dataset.from_dict({"prompt": texts, "completion": [" yes .", " no"] * 6})
    return datasets.Dataset.from_dict({"text": texts})


def steps(path, *, ours: bool, form: str = "prompt", make=llama, **more):
    """Weights and logs of three steps of two micro-batches each by TRL's trainer, and the loss of an evaluation."""
    model = get_peft_model(make(), AlloraConfig(r=2, eta=1.7, target_modules="all-linear", task_type="CAUSAL_LM"))
    randomise(model)
    model.get_output_embeddings().weight.data.mul_(10)  # a random model has nearly the same loss everywhere
    settings = {
        "learning_rate": 0.05,
        "max_steps": 3,
        "gradient_accumulation_steps": 2,
        "logging_steps": 1,
        "gradient_checkpointing": False,
    }
    if form == "packed":
        settings |= {"packing": True, "max_length": 16, "packing_strategy": "wrapped"}
    args = dataclasses.replace(arguments(path, sft=True), **(settings | more))
    trainer = SFTTrainer(model, args, train_dataset=rows(form), eval_dataset=rows(form), processing_class=tokenizer())
    if ours:
        score_labels_only(model.get_base_model())
    trainer.train()
    evaluated = trainer.evaluate()
    logs = [
        {k: v for k, v in entry.items() if "runtime" not in k and "per_second" not in k} for entry in trainer.state.log_history
    ]
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}, logs, evaluated["eval_loss"]


CASES = {
    "prompts-masked": {},
    "every-token": {"form": "text"},
    "packed": {"form": "packed"},
    "checkpointing": {"gradient_checkpointing": True},
    "gpt2": {"make": gpt2},
    "router": {"make": mixtral, "router_aux_loss_coef": 0.1},
}


@pytest.mark.parametrize("name", CASES)
def test_it_trains_what_trl_trains(name: str, tmp_path) -> None:
    """Weights after three steps, and what is logged: loss, tokens, the router's loss."""
    expected, logs, loss = steps(tmp_path, ours=False, **CASES[name])
    for on in (True, False):
        with fast_paths(logits=on):
            got, ours, evaluated = steps(tmp_path, ours=True, **CASES[name])
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
        assert evaluated == pytest.approx(loss, rel=1e-5)
        assert [entry.keys() for entry in ours] == [entry.keys() for entry in logs]
        for a, b in zip(ours, logs, strict=True):
            a, b = ({k: v for k, v in entry.items() if not k.endswith(("accuracy", "entropy"))} for entry in (a, b))
            assert a == pytest.approx(b, rel=1e-4, abs=1e-6)


def test_a_batch_without_a_label(tmp_path) -> None:
    """Loss and gradient are zero, and there."""
    model = get_peft_model(llama(), AlloraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    trainer = SFTTrainer(model, arguments(tmp_path, sft=True), train_dataset=rows("text"), processing_class=tokenizer())
    score_labels_only(model.get_base_model())
    batch = next(iter(trainer.get_train_dataloader()))
    batch["labels"] = torch.full_like(batch["labels"], next_token.IGNORED)
    for items in (None, torch.tensor(5)):
        loss = trainer.compute_loss(model, dict(batch), num_items_in_batch=items)
        loss.backward()
        assert loss.item() == 0
        assert all((p.grad == 0).all() for p in model.parameters() if p.requires_grad)


@pytest.fixture
def settings(tiny_llama, reviews, tmp_path) -> dict:
    return {
        "task": "causal-lm", "model": tiny_llama, "data": str(reviews), "output_dir": str(tmp_path / "run"), "r": 2,
        "max_steps": 3, "batch_size": 4, "prompt_column": "prompt", "completion_column": "completion", "overwrite": True,
        "optimizer": "sgd", "learning_rate": 0.5, "gradient_accumulation": 2,
    }  # fmt: skip


def run(settings: dict) -> RunRecord:
    train(RunConfig.of(settings))
    return RunRecord.read(f"{settings['output_dir']}/record.json")


def test_a_run_takes_it_and_its_record_does_not_change(settings, monkeypatch) -> None:
    rows_at_the_head: list[int] = []
    right = next_token.linear_cross_entropy

    def counted(hidden, *rest):
        rows_at_the_head.append(len(hidden))
        return right(hidden, *rest)

    monkeypatch.setattr(next_token, "linear_cross_entropy", counted)
    record = run(settings)
    assert rows_at_the_head
    assert set(rows_at_the_head) <= {2 * 2, 2 * 3, 2 * 4}  # two tokens of each row are learnt: the answer and the end
    rows_at_the_head.clear()
    with fast_paths(logits=False):
        plain = run(settings)
    assert rows_at_the_head == []
    for a, b in zip(record.history, plain.history, strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    for when in ("before", "after"):
        assert record.metrics[when] == pytest.approx(plain.metrics[when], rel=1e-5)


def test_a_shift_by_one_in_a_run_is_told_apart(settings, monkeypatch) -> None:
    record = run(settings)
    monkeypatch.setattr(next_token, "pad", lambda mask, _: torch.nn.functional.pad(mask, (1, 0)))
    wrong = run(settings)
    assert wrong.history[0]["loss"] != pytest.approx(record.history[0]["loss"], rel=1e-5)
