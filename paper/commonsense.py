"""One commonsense run: train on the rows of several tasks together, then read the answers to test questions.

The loop is not `alloralib.train`, which first measures a step (34 s here, as long as all updates of a laptop cell) and computes
logits for every token of a prompt, which takes most of the time of a small model with a large vocabulary. Here rows are padded
on the left, so that all answers end in the last column, and logits are computed for the answers only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from alloralib.data.choices import Question, questions
from alloralib.data.duplicates import normalized
from alloralib.data.parts import load_parts
from alloralib.data.registry import REGISTRY
from alloralib.errors import DataError, TrainingError

from .cells import Key, Settings
from .data import StudyData

METHODS = {"DoRA": "dora", "ALLoRA+D": "allora-d", "ALLoRA": "allora", "LoRA": "lora"}
"""The paper's name of each method -> its name in `make_config`."""

IGNORED = -100
TARGETS = ("q_proj", "k_proj", "v_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class TaskRows:
    """The questions of one task that a run uses, and the most frequent answer of the training rows."""

    train: list[Question]
    validation: list[Question]
    test: list[Question]
    frequent: str


@dataclass(frozen=True)
class Row:
    """The tokens of prompt and answer, and how many at the end are the answer's, with the end-of-text token."""

    ids: list[int]
    learned: int


def load_tasks(settings: Settings, data: StudyData, seed: int) -> dict[str, TaskRows]:
    """Load the rows of every task.

    Validation rows are a share of the training part, even if the data set has its own. Neither they nor the test rows depend on
    `seed`, so all runs answer the same questions. A question asked of one task is not trained on in another.

    Raises:
        DataError: a file is missing or malformed, or no rows are left.
    """
    parts = {
        task: load_parts(
            "multiple-choice", REGISTRY[task].columns, data=task, data_dir=data.registered,
            validation_share=settings["validation_share"], train_rows=settings["train_rows"],
            validation_rows=settings["validation_rows"], test_rows=settings["test_rows"], data_seed=seed,
            held_out="random",
        )
        for task in settings["tasks"]
    }  # fmt: skip
    found: dict[str, TaskRows] = {}
    for task, part in parts.items():
        assert part.validation is not None
        columns = REGISTRY[task].columns
        train, validation, test = (questions(table, columns) for table in (part.train, part.validation, part.test))
        answers = [q.choices[q.answer] for q in train]
        found[task] = TaskRows(train, validation, test, max(sorted(set(answers)), key=answers.count))
    held = {normalized(q.prompt) for rows in found.values() for q in (*rows.validation, *rows.test)}
    return {
        task: TaskRows([q for q in rows.train if normalized(q.prompt) not in held], rows.validation, rows.test, rows.frequent)
        for task, rows in found.items()
    }


def encode(tokenizer: Any, rows: Sequence[Question], cutoff: int) -> list[Row]:
    """Tokenize prompt, right answer and end of text, cut to `cutoff` tokens. Rows whose answer is cut off are dropped.

    Raises:
        DataError: no rows are left.
    """
    from alloralib.evaluation.generation import encode_prompt

    found: list[Row] = []
    for q in rows:
        prompt = encode_prompt(tokenizer, q.prompt)
        ids = [*encode_prompt(tokenizer, q.prompt + q.choices[q.answer]), tokenizer.eos_token_id][:cutoff]
        if len(ids) > len(prompt):
            found.append(Row(ids, len(ids) - len(prompt)))
    if not found:
        raise DataError(f"every prompt alone has at least {cutoff} tokens", remedy="raise the setting cutoff")
    return found


def adapted(key: Key, settings: Settings) -> tuple[Any, Any]:
    """The frozen model with the cell's adapter, initialized from its seed, and the tokenizer."""
    from peft import TaskType, get_peft_model

    from alloralib.adapters.methods import make_config
    from alloralib.ops.family import METHODS as KNOWN
    from alloralib.training.models import load_model, load_processor, locate

    path = locate(settings["models"][key["model"]]["name"])
    tokenizer = load_processor(path, "causal-lm")
    model = load_model(
        path, task="causal-lm", labels=None, dtype=getattr(torch, settings["dtype"]), pad_token_id=tokenizer.pad_token_id
    )
    method = METHODS[key["method"]]
    config = make_config(
        method, r=key["r"], eta=key["eta2"] ** 0.5 if "eta2" in key else None,
        dropout=settings["dropout"] if "dropout" in KNOWN[method].settings else None,
        target_modules=list(TARGETS), task_type=TaskType.CAUSAL_LM,
    )  # fmt: skip
    torch.manual_seed(key["seed"])
    return get_peft_model(model.to("cuda" if torch.cuda.is_available() else "cpu"), config), tokenizer


def tune(model: Any, rows: Sequence[Row], settings: Settings, learning_rate: float, seed: int) -> list[float]:
    """Train the adapter with AdamW.

    The order of the rows and the dropout masks depend on `seed` alone.

    Returns:
        the loss per answer token of every update, in nats.

    Raises:
        TrainingError: NaN or infinite loss.
    """
    from transformers import get_scheduler

    from alloralib.training.batches import BucketBatches

    torch.manual_seed(seed)
    parameters = [p for p in model.parameters() if p.requires_grad]
    batches = BucketBatches([len(row.ids) for row in rows], settings["batch"], seed, pool=50)  # as in the committed records
    steps = settings["updates"] or ceil(settings["epochs"] * len(batches))
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    schedule = get_scheduler(settings["schedule"], optimizer, settings["warmup"], steps)
    losses: list[float] = []
    model.train()
    while len(losses) < steps:
        batches.set_epoch(len(losses) // len(batches))
        for batch in list(batches)[: steps - len(losses)]:
            sums, counts = answer_losses(model, [rows[i] for i in batch])
            loss = sums.sum() / counts.sum()
            if not torch.isfinite(loss):
                raise TrainingError(f"the loss is {loss.item()} at update {len(losses) + 1}", remedy="lower the learning rate")
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    return losses


def answer_losses(model: Any, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """The cross-entropy of the answers' tokens in nats, summed by row (N,) float32, and their number (N,)."""
    from alloralib.evaluation.generation import left_padded

    ids, mask = left_padded([row.ids for row in rows], 0, model.device)
    width = max(row.learned for row in rows)
    position = (mask.cumsum(dim=1) - 1).clamp(min=0)
    # A tensor of positions, not a number: the slice that a number gives costs one product and one copy of the head per row.
    places = torch.arange(ids.shape[1] - width - 1, ids.shape[1] - 1, device=model.device)
    logits = model(input_ids=ids, attention_mask=mask, position_ids=position, logits_to_keep=places).logits
    counts = torch.tensor([row.learned for row in rows], device=model.device)
    learned = torch.arange(width, device=model.device) >= width - counts[:, None]
    targets = ids[:, -width:].masked_fill(~learned, IGNORED)
    losses = cross_entropy(logits.float().transpose(1, 2), targets, ignore_index=IGNORED, reduction="none")
    return losses.sum(dim=1), counts


def mean_loss(model: Any, rows: Sequence[Row], batch: int) -> float:
    """The loss in nats per token of the reference answers."""
    from alloralib.evaluation.batching import evaluation_mode, longest_first

    total, tokens = 0.0, 0
    with evaluation_mode(model):
        for chosen in longest_first([len(row.ids) for row in rows], batch):
            sums, counts = answer_losses(model, [rows[i] for i in chosen])
            total, tokens = total + float(sums.double().sum()), tokens + int(counts.sum())
    return total / tokens


def read_answers(model: Any, tokenizer: Any, rows: Sequence[Question], settings: Settings) -> list[int | None]:
    """The choice that each generated answer names first, or None if it names none."""
    from alloralib.evaluation.choice import read_choice
    from alloralib.evaluation.generation import generate_answers

    said = generate_answers(
        model, tokenizer, [q.prompt for q in rows], max_new_tokens=settings["new_tokens"], batch_size=settings["ask_batch"]
    )
    return [read_choice(text, q.choices) for text, q in zip(said, rows, strict=True)]
