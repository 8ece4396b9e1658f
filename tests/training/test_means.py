"""Loss and gradient of an optimizer step are means over rows (classifiers) or trained tokens (language models).

The twin is one big batch in plain transformers, PEFT and torch: it reads the same file, computes every row alone and
without padding, and takes the mean over all rows or trained tokens of the step.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from PIL import Image
from torch.nn.functional import cross_entropy
from transformers import (
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaForSequenceClassification,
    TrainerCallback,
)

from alloralib import fast_paths
from alloralib.training.callbacks import StopOnSignal
from alloralib.training.config import RunConfig
from alloralib.training.directory import RunDirectory
from alloralib.training.prepare import Run, prepare
from alloralib.training.run import train
from alloralib.training.state import RunState
from alloralib.training.trainer import RunTrainer

from ..conftest import WORDS
from ..tiny import save
from ..trained import jsonl, make_chat_model, make_image_model, make_images

ROWS = 11
HELD_OUT = 2
Losses = Callable[[Any, int], torch.Tensor]
"""The twin's losses of the trained tokens of a row, or (1,) of a row that has a class."""


def sentence(row: int, words: int) -> str:
    return " ".join(WORDS[(row * 7 + i * (1 + row % 3)) % len(WORDS)] for i in range(words))


def words_of(row: int) -> int:
    """Rows of very different lengths, in no order."""
    return (1, 19, 2, 7, 3)[row % 5] + row // 5


def token_losses(model: Any, ids: list[int], start: int) -> torch.Tensor:
    logits = model(input_ids=torch.tensor([ids])).logits[0]
    return cross_entropy(logits[start - 1 : -1].float(), torch.tensor(ids[start:]), reduction="none")


def classifier(root: Path, llama: str) -> tuple[dict[str, Any], list[dict[str, Any]], Losses]:
    rows = [{"text": sentence(row, words_of(row)), "label": ["neg", "pos"][row % 2]} for row in range(ROWS + HELD_OUT)]
    tokenizer = AutoTokenizer.from_pretrained(llama)

    def losses(model: Any, row: int) -> torch.Tensor:
        logits = model(input_ids=torch.tensor([tokenizer(rows[row]["text"])["input_ids"]])).logits
        return cross_entropy(logits, torch.tensor([int(rows[row]["label"] == "pos")]), reduction="none")

    return {"task": "classification", "model": llama}, rows, losses


def images(root: Path, llama: str) -> tuple[dict[str, Any], list[dict[str, Any]], Losses]:
    model_path, folder = make_image_model(root / "vit"), Path(make_images(root / "images"))
    files = sorted(folder.rglob("*.png"))[: ROWS + HELD_OUT]
    names = ["a", "b", "c"]
    rows = [{"image": str(file), "label": names[i % 3]} for i, file in enumerate(files)]
    processor = AutoImageProcessor.from_pretrained(model_path)

    def losses(model: Any, row: int) -> torch.Tensor:
        pixels = processor(images=[Image.open(rows[row]["image"]).convert("RGB")], return_tensors="pt")["pixel_values"]
        return cross_entropy(model(pixel_values=pixels).logits, torch.tensor([row % 3]), reduction="none")

    return {"task": "image-classification", "model": model_path}, rows, losses


def completions(root: Path, llama: str) -> tuple[dict[str, Any], list[dict[str, Any]], Losses]:
    numbers = range(ROWS + HELD_OUT)
    rows = [{"prompt": sentence(row, 2), "completion": " " + sentence(row + 50, words_of(row))} for row in numbers]
    tokenizer = AutoTokenizer.from_pretrained(llama)

    def losses(model: Any, row: int) -> torch.Tensor:
        ids = tokenizer(rows[row]["prompt"] + rows[row]["completion"])["input_ids"] + [tokenizer.eos_token_id]
        return token_losses(model, ids, 2)

    return {"task": "causal-lm", "model": llama, "prompt_column": "prompt", "completion_column": "completion"}, rows, losses


def chat(root: Path, llama: str) -> tuple[dict[str, Any], list[dict[str, Any]], Losses]:
    model_path = make_chat_model(llama, root / "chat-model")
    talks = [(sentence(row, 3), sentence(row + 50, words_of(row))) for row in range(ROWS + HELD_OUT)]
    rows = [{"messages": [{"role": "user", "content": u}, {"role": "assistant", "content": a}]} for u, a in talks]
    tokenizer = AutoTokenizer.from_pretrained(model_path)

    def losses(model: Any, row: int) -> torch.Tensor:
        question, answer = talks[row]
        asked = tokenizer(f"user {question} </s> assistant ")["input_ids"]
        return token_losses(model, asked + tokenizer(f"{answer} </s>")["input_ids"], len(asked))

    return {"task": "chat", "model": model_path}, rows, losses


def choices(root: Path, llama: str) -> tuple[dict[str, Any], list[dict[str, Any]], Losses]:
    rows: list[dict[str, Any]] = []
    for row in range(ROWS + HELD_OUT):
        options = [sentence(row + 50, words_of(row)), sentence(row + 51, 30)]
        rows.append({"prompt": sentence(row, 2) + " ", "choices": options, "answer": options[0]})
    tokenizer = AutoTokenizer.from_pretrained(llama)

    def losses(model: Any, row: int) -> torch.Tensor:
        ids = tokenizer(rows[row]["prompt"] + rows[row]["answer"])["input_ids"] + [tokenizer.eos_token_id]
        return token_losses(model, ids, 2)

    return {"task": "multiple-choice", "model": llama}, rows, losses


TASKS = {
    "classification": classifier, "image-classification": images, "causal-lm": completions, "chat": chat,
    "multiple-choice": choices,
}  # fmt: skip


def stock(run: Run, start: dict[str, torch.Tensor]) -> Any:
    """The model of a run in stock PEFT, with the given weights."""
    config, adapter = run.config, {"r": 2, "lora_alpha": 2, "target_modules": ["q_proj", "v_proj"]}
    if config.is_language:
        base: Any = AutoModelForCausalLM.from_pretrained(config.model)
        adapter |= {"task_type": TaskType.CAUSAL_LM}
    elif config.task == "classification":
        base = AutoModelForSequenceClassification.from_pretrained(config.model, num_labels=2)
        base.config.pad_token_id = 0
        adapter |= {"task_type": TaskType.SEQ_CLS}
    else:
        base = AutoModelForImageClassification.from_pretrained(config.model, num_labels=3, ignore_mismatched_sizes=True)
        adapter |= {"modules_to_save": ["classifier"]}
    model = get_peft_model(base, LoraConfig(**adapter)).train()
    model.load_state_dict(start, strict=False)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == set(trained_names(run.model))
    return model


def trained_names(model: Any) -> list[str]:
    return [name for name, p in model.named_parameters() if p.requires_grad]


class Watch(TrainerCallback):
    """The gradient of every optimizer step, as it was after clipping."""

    def __init__(self) -> None:
        self.gradients: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})


class Watched(RunTrainer):
    """Remembers the rows of every optimizer step."""

    def get_batch_samples(self, *args, **kwargs):
        samples, items = super().get_batch_samples(*args, **kwargs)
        self.steps = [*getattr(self, "steps", []), [int(row) for batch in samples for row in batch["row"]]]
        return samples, items


@pytest.fixture(scope="module")
def prepared(tiny_llama, tmp_path_factory):
    """By task: a run, its weights at the start, and the twin's losses."""
    made: dict[str, Any] = {}

    def get(task: str) -> tuple[Run, dict[str, torch.Tensor], Losses]:
        if task not in made:
            root = tmp_path_factory.mktemp(task)
            own, rows, losses = TASKS[task](root, tiny_llama)
            data, test = jsonl(root / "rows.jsonl", rows[:ROWS]), jsonl(root / "test.jsonl", rows[ROWS:])
            settings = {
                "data": data, "test_data": test, "output_dir": str(root / "run"), "method": "lora", "r": 2, "dropout": 0.0,
                "optimizer": "sgd", "target_modules": "q_proj,v_proj", "schedule": "constant", "warmup": 0.0,
                "learning_rate": 0.3, "epochs": 2, "max_grad_norm": 1e9,
            }  # fmt: skip
            config = RunConfig.of(own | settings)
            run = prepare(config, RunDirectory(config.output_dir), StopOnSignal())
            assert len(run.examples["train"]) == ROWS
            generator = torch.Generator().manual_seed(0)
            with torch.no_grad():
                for p in run.model.parameters():
                    if p.requires_grad:
                        p.normal_(generator=generator)
            start = {name: p.detach().clone() for name, p in run.model.named_parameters()}
            made[task] = run, start, losses
        return made[task]

    return get


def fitted(run: Run, start: dict[str, torch.Tensor], rows: int, **changed: Any) -> tuple[Watched, Watch]:
    run.model.load_state_dict(start, strict=False)
    run = dataclasses.replace(
        run, config=run.config.model_copy(update=changed), state=RunState({}),
        examples=run.examples | {"train": run.examples["train"].select(range(rows))},
    )  # fmt: skip
    trainer, watch = Watched(run), Watch()
    trainer.add_callback(watch)
    trainer.fit()
    return trainer, watch


CASES = {
    "a partial window with a partial batch": (10, 4, 3, 1e9),
    "a partial batch alone in the last window": (11, 5, 2, 1e9),
    "a last window of one row": (7, 2, 3, 1e9),
    "rows by rows": (5, 1, 4, 1e9),
    "no accumulation, clipped": (11, 4, 1, 0.5),
    "clipped in a partial window": (9, 2, 3, 0.5),
    "fewer rows than a batch": (3, 5, 4, 1e9),
    "one row": (1, 4, 2, 1e9),
}
"""Rows, batch size, gradient accumulation and max_grad_norm."""


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("task", TASKS)
def test_a_step_is_one_big_batch(task: str, packed: bool, prepared) -> None:
    """Gradient, loss, gradient norm and, after two epochs, the weights: whatever the batches are."""
    for case, numbers in CASES.items():
        try:
            check(*prepared(task), *numbers, packed)
        except AssertionError as error:
            error.add_note(case)
            raise


def check(
    run: Run, start: dict[str, torch.Tensor], losses: Losses, rows: int, batch_size: int, accumulation: int,
    max_grad_norm: float, packed: bool,
) -> None:  # fmt: skip
    changed = {"batch_size": batch_size, "gradient_accumulation": accumulation, "max_grad_norm": max_grad_norm}
    with fast_paths(packed=packed):
        trainer, watch = fitted(run, start, rows, **changed)
    per_epoch = math.ceil(math.ceil(rows / batch_size) / accumulation)
    history = trainer.run.state.history
    assert len(trainer.steps) == len(history) == trainer.planned_steps() == 2 * per_epoch
    for epoch in (trainer.steps[:per_epoch], trainer.steps[per_epoch:]):
        assert sorted(row for step in epoch for row in step) == list(range(rows))
    twin = stock(run, start)
    parameters = {name: p for name, p in twin.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(parameters.values(), lr=0.3)
    for step, entry, gradient in zip(trainer.steps, history, watch.gradients, strict=True):
        optimizer.zero_grad()
        loss = torch.cat([losses(twin, row) for row in step]).mean()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters.values(), max_grad_norm)
        assert entry["loss"] == pytest.approx(loss.item(), rel=1e-4)
        assert entry["grad_norm"] == pytest.approx(norm.item(), rel=1e-3)
        assert entry["learning_rate"] == 0.3
        torch.testing.assert_close(gradient, {n: p.grad for n, p in parameters.items()}, rtol=1e-3, atol=1e-4 * float(norm))
        optimizer.step()
    weights = {name: p.detach() for name, p in run.model.named_parameters() if p.requires_grad}
    torch.testing.assert_close(weights, {n: p.detach() for n, p in parameters.items()}, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("task", ["classification", "causal-lm"])
def test_a_forward_pass_without_trained_tokens_adds_nothing(task: str, prepared) -> None:
    """Its loss and gradient are 0, not the mean of nothing; the other forward passes of the step have the items."""
    run, start, _ = prepared(task)
    run.model.load_state_dict(start, strict=False)
    trainer = RunTrainer(run)
    batch = run.collate([run.examples["train"][row] for row in range(3)])
    batch["labels"] = torch.full_like(batch["labels"], -100)
    for items in (torch.tensor(7), torch.tensor(0)):
        loss = trainer.compute_loss(run.model.train(), dict(batch), num_items_in_batch=items)
        assert loss.item() == 0
        loss.backward()
        assert all(p.grad is None or bool((p.grad == 0).all()) for p in run.model.parameters())


@pytest.mark.parametrize("kind", ["multi_label_classification", "regression"])
def test_a_base_that_was_made_for_another_kind_of_labels(kind: str, tiny_llama, reviews, tmp_path) -> None:
    """Its configuration names another loss than the cross-entropy of one class."""
    model = LlamaForSequenceClassification.from_pretrained(tiny_llama, num_labels=2)
    model.config.problem_type = kind
    path = save(tmp_path / "model", model, AutoTokenizer.from_pretrained(tiny_llama))
    settings = {"data": str(reviews), "output_dir": str(tmp_path / "run"), "r": 2, "max_steps": 8, "learning_rate": 0.05}
    found = train(RunConfig.of(settings | {"task": "classification", "model": path}))
    assert found.metrics["after"]["loss"] < found.metrics["before"]["loss"]
