"""A model's answers on held-out examples, in batches of similar length: its classes, and its loss per token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from .metrics import Evaluation, classification_metrics, perplexity, ratio_interval
from .next_token import score_next_tokens

Tick = Callable[[int], object]  # told how many examples were done
Collate = Callable[[list[Any]], Any]

_FOR_THE_MODEL = (
    *("input_ids", "attention_mask", "token_type_ids", "pixel_values", "labels"),
    *("completion_mask", "assistant_masks"),  # what TRL's collator makes labels of
)


MOST_PADDING = 0.05
"""Padding, as a share of a batch's own tokens, above which scoring would rather have another batch."""
FILLED = 256
"""Tokens, padding included, from which a batch keeps a machine busy: a smaller one is not cut for its padding."""


def longest_first(
    lengths: Sequence[int], batch_size: int, *, most_padding: float | None = None, filled: int = FILLED
) -> Iterator[list[int]]:
    """Row numbers of each batch: similar lengths together, the batch that needs most memory first.

    Args:
        lengths: tokens of every row.
        batch_size: rows of a batch; fewer where it is cut.
        most_padding: cut a batch of at least `filled` tokens before the row that would bring its padding over this share of
            its tokens. Generation does not want that: it pays for every batch's steps, not for every token.

    >>> list(longest_first([3, 9, 4], 2))
    [[1, 2], [0]]
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    batch: list[int] = []
    tokens = 0
    for row in order:
        if batch:
            longest = lengths[batch[0]]
            padded = longest * (len(batch) + 1)
            cut = most_padding is not None and padded > (1 + most_padding) * (tokens + lengths[row])
            if len(batch) == batch_size or (cut and longest * len(batch) >= filled):
                yield batch
                batch, tokens = [], 0
        batch.append(row)
        tokens += lengths[row]
    if batch:
        yield batch


def batches(examples: Any, collate: Collate, batch_size: int) -> Iterator[tuple[list[int], Any]]:
    """Row numbers and collated batch; examples without tokens (images) keep their order."""
    named = "input_ids" in examples.column_names
    lengths = [len(ids) for ids in examples["input_ids"]] if named else [0] * len(examples)
    for rows in longest_first(lengths, batch_size, most_padding=MOST_PADDING):
        chosen = (examples[i] for i in rows)
        yield rows, collate([{k: v for k, v in example.items() if k in _FOR_THE_MODEL} for example in chosen])


@contextmanager
def answering(model: Any) -> Iterator[None]:
    """The model in evaluation mode and without gradients; its mode is restored whatever happens."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def nothing(done: int) -> None:
    """A tick that tells nobody."""


def classify(
    model: Any, examples: Any, collate: Collate, names: Sequence[str], batch_size: int, tick: Tick = nothing
) -> Evaluation:
    """The most probable class of every example, text or image.

    Args:
        model: with `logits` of shape (batch, classes).
        examples: a `datasets.Dataset` with input_ids or pixel_values, `labels` (class index), and `row` where the items
            are to carry the row's number in its table.
        collate: from examples to tensors.
        names: of the classes, in the order of the logits.

    Returns:
        accuracy, accuracy_low, accuracy_high, macro_f1, balanced_accuracy and loss (nats per example); items with row,
        predicted, truth, probability (of the predicted class), correct.
    """
    count = len(examples)
    predicted, truth = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
    probability, loss = np.zeros(count), np.zeros(count)
    with answering(model):
        for rows, batch in batches(examples, collate, batch_size):
            batch = {k: v.to(model.device) for k, v in batch.items()}
            labels = batch.pop("labels")
            logits = model(**batch).logits.float()
            top = logits.softmax(dim=-1).max(dim=-1)
            predicted[rows], probability[rows] = top.indices.cpu().numpy(), top.values.cpu().numpy()
            truth[rows] = labels.cpu().numpy()
            loss[rows] = cross_entropy(logits, labels, reduction="none").cpu().numpy()
            tick(len(rows))
    metrics = classification_metrics(predicted, truth, len(names)) | {"loss": float(loss.mean())}
    items = [
        {
            "row": row,
            "predicted": names[predicted[i]],
            "truth": names[truth[i]],
            "probability": float(probability[i]),
            "correct": bool(predicted[i] == truth[i]),
        }
        for i, row in enumerate(row_numbers(examples))
    ]
    return Evaluation(metrics, items)


def language_loss(model: Any, examples: Any, collate: Collate, batch_size: int, tick: Tick = nothing) -> Evaluation:
    """Cross-entropy in nats of the tokens that are learnt.

    Tokens with label -100 (padding, prompts) are not counted; every other one counts the same, in whatever batch.

    Args:
        model: with `logits` of shape (batch, length, vocabulary), position t predicting token t + 1.
        examples: a `datasets.Dataset` with input_ids, labels (or what the collator makes them of), and perhaps `row`.

    Returns:
        loss (per token) with its 95 % interval over rows, perplexity, tokens; items with row, loss (per token of that row,
        None where it has none), tokens.
    """
    totals, counts = np.zeros(len(examples)), np.zeros(len(examples), dtype=np.int64)
    with answering(model):
        for rows, batch in batches(examples, collate, batch_size):
            batch = {k: v.to(model.device) for k, v in batch.items()}
            labels = batch.pop("labels")
            found = score_next_tokens(model, batch, labels)
            owner = found.mask.nonzero()[:, 0].cpu().numpy()
            counts[rows] = np.bincount(owner, minlength=len(rows))
            totals[rows] = np.bincount(owner, weights=found.loss.double().cpu().numpy(), minlength=len(rows))
            tick(len(rows))
    tokens = int(counts.sum())
    loss = float(totals.sum() / max(tokens, 1))
    items = [
        {"row": row, "loss": float(totals[i] / counts[i]) if counts[i] else None, "tokens": int(counts[i])}
        for i, row in enumerate(row_numbers(examples))
    ]
    low, high = ratio_interval(totals, counts)
    metrics = {"loss": loss, "loss_low": low, "loss_high": high, "perplexity": perplexity(loss), "tokens": tokens}
    return Evaluation(metrics, items)


def row_numbers(examples: Any) -> list[int]:
    """The number of each example's row in its table; its place where the examples do not say."""
    return list(examples["row"]) if "row" in examples.column_names else list(range(len(examples)))
