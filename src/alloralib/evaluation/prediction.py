"""The answers of a model to rows whose answers are not known: classes, choices, and the prompts to generate from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..data.choices import choice_lists
from ..data.conversations import conversations
from ..data.forms import Columns, Kind
from ..data.table import Table
from ..errors import ModelError
from .batching import Collate, Progress, no_progress
from .choice import choice_scores
from .generation import Prompt
from .scoring import class_logits


class Prediction(NamedTuple):
    """The most probable class (or choice) of a row, and the probability of every one by its name."""

    label: str
    probabilities: dict[str, float]


def predict_classes(
    model: Any, examples: Any, collate: Collate, labels: Sequence[str], batch_size: int, progress: Progress = no_progress
) -> list[Prediction]:
    """The class of every example by a classifier.

    Args:
        model, examples, collate: as in `scoring.class_logits`.
        labels: the classes, in the order of the logits.

    Raises:
        ModelError: a logit is NaN or infinite.
    """
    logits = class_logits(model, examples, collate, batch_size, progress)
    return [_prediction(labels, row) for row in _probabilities(logits).tolist()]


def predict_choices(
    model: Any, tokenizer: Any, table: Table, columns: Columns, batch_size: int, progress: Progress = no_progress
) -> list[Prediction]:
    """The most probable choice of every row by a language model.

    The probabilities are those of the choices as continuations of the prompt, divided by their sum. The label is the
    choice that `choice.evaluate_choices` calls `chosen`.

    Raises:
        DataError: as `data.choices.questions`.
        ModelError: a log-probability is NaN or infinite.
    """
    assert columns.prompt is not None
    assert columns.choices is not None
    prompts, choices = table.texts(columns.prompt, "prompt-column"), choice_lists(table, columns.choices)
    scores, _ = choice_scores(model, tokenizer, prompts, choices, batch_size, progress)
    rows = zip(choices, scores, strict=True)
    return [_prediction(names, _probabilities(torch.tensor(row, dtype=torch.float64)).tolist()) for names, row in rows]


def unanswered(kind: Kind, table: Table, columns: Columns) -> list[Prompt]:
    """What a language model is asked by every row: the prompt, the text to continue, or the conversation.

    A conversation that ends with a message of the assistant is asked without that message.

    Raises:
        DataError: a malformed row, or a conversation of nothing but an answer.
    """
    name = columns.prompt or columns.text
    if name is not None:
        texts = table.texts(name, "prompt-column" if columns.prompt else "text-column")
        beside = [part for part in ("system", "tools") if kind == "chat" and part in table.columns]
        if not beside:
            return list(texts)
        return [{"prompt": text} | {part: table.columns[part][row] for part in beside} for row, text in enumerate(texts)]
    assert columns.messages is not None
    return list(conversations(table, columns.messages, unanswered=True))


def _probabilities(logits: Tensor) -> Tensor:
    """Softmax over the last dimension."""
    if not logits.isfinite().all():
        raise ModelError("the model's logits are NaN or infinite", remedy="try --dtype float32, or train again")
    return logits.softmax(dim=-1)


def _prediction(labels: Sequence[str], probabilities: Sequence[float]) -> Prediction:
    by_label = dict(zip(labels, probabilities, strict=True))
    return Prediction(max(by_label, key=by_label.__getitem__), by_label)
