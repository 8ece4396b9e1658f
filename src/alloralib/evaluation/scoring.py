"""Score a model on examples with known answers: a classifier by its classes, a language model by its loss per token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from .batching import Collate, Progress, batches, evaluation_mode, no_progress
from .metrics import Evaluation, classification_metrics, perplexity, ratio_interval
from .next_token import score_next_tokens


def class_logits(model: Any, examples: Any, collate: Collate, batch_size: int, progress: Progress = no_progress) -> Tensor:
    """The logits of every example, text or image.

    Args:
        model: its output has `logits` of shape (batch, classes).
        examples: a `datasets.Dataset` from `data.examples.build_examples`. Its labels are not used.
        collate: makes a batch of tensors of a list of examples.

    Returns:
        (len(examples), classes), float32, on the CPU.
    """
    logits: dict[int, Tensor] = {}
    with evaluation_mode(model):
        for rows, batch in batches(examples, collate, batch_size):
            inputs = {name: tensor.to(model.device) for name, tensor in batch.items() if name != "labels"}
            logits |= zip(rows, model(**inputs).logits.float().cpu(), strict=True)
            progress(len(rows))
    return torch.stack([logits[row] for row in range(len(examples))])


def evaluate_classifier(
    model: Any, examples: Any, collate: Collate, labels: Sequence[str], batch_size: int, progress: Progress = no_progress
) -> Evaluation:
    """Compare the most probable class of every example with the true one.

    Args:
        model, examples, collate: as in `class_logits`.
        labels: the classes, in the order of the logits.

    Returns:
        accuracy with its 95 % interval, macro_f1, balanced_accuracy and loss (nats per example). The items have row,
        predicted, truth, probability (of the predicted class) and correct.
    """
    logits = class_logits(model, examples, collate, batch_size, progress)
    truth = torch.tensor(list(examples["labels"]))
    top = logits.softmax(dim=-1).max(dim=-1)
    loss = cross_entropy(logits, truth, reduction="none").double().mean().item()
    metrics = classification_metrics(top.indices.numpy(), truth.numpy(), len(labels)) | {"loss": loss}
    answers = zip(examples["row"], top.indices.tolist(), truth.tolist(), top.values.tolist(), strict=True)
    items = [
        {"row": row, "predicted": labels[p], "truth": labels[t], "probability": probability, "correct": p == t}
        for row, p, t, probability in answers
    ]
    return Evaluation(metrics, items)


def evaluate_loss(model: Any, examples: Any, collate: Collate, batch_size: int, progress: Progress = no_progress) -> Evaluation:
    """The cross-entropy of a causal language model, in nats per token.

    Tokens with label -100 (padding, prompts) are not counted. All others have the same weight, in batches of any size.

    Args:
        model: its output has `logits` of shape (batch, length, vocabulary); position t predicts token t + 1.
        examples: a `datasets.Dataset` with `input_ids`, `labels` and `row`.

    Returns:
        loss (per token) with its 95 % interval over rows, perplexity, and tokens (their number). The items have row,
        loss (per token of the row, None without tokens) and tokens.
    """
    totals, counts = np.zeros(len(examples)), np.zeros(len(examples), dtype=np.int64)
    with evaluation_mode(model):
        for rows, batch in batches(examples, collate, batch_size):
            batch = {k: v.to(model.device) for k, v in batch.items()}
            labels = batch.pop("labels")
            found = score_next_tokens(model, batch, labels)
            owner = found.mask.nonzero()[:, 0].cpu().numpy()
            counts[rows] = np.bincount(owner, minlength=len(rows))
            totals[rows] = np.bincount(owner, weights=found.loss.double().cpu().numpy(), minlength=len(rows))
            progress(len(rows))
    tokens = int(counts.sum())
    loss = float(totals.sum() / max(tokens, 1))
    items = [
        {"row": row, "loss": float(totals[i] / counts[i]) if counts[i] else None, "tokens": int(counts[i])}
        for i, row in enumerate(examples["row"])
    ]
    low, high = ratio_interval(totals, counts)
    metrics = {"loss": loss, "loss_low": low, "loss_high": high, "perplexity": perplexity(loss), "tokens": tokens}
    return Evaluation(metrics, items)
