"""A model's answers on held-out examples, in batches of similar length."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Tick = Callable[[int], object]  # told how many examples were done


def batches(examples: Any, collate: Callable[[list[Any]], Any], batch_size: int) -> Iterator[tuple[list[int], Any]]:
    """Row numbers and collated batch, longest first, so that rows of similar length share a batch."""
    lengths = [len(ids) for ids in examples["input_ids"]]
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        yield rows, collate([examples[i] for i in rows])


@torch.inference_mode()
def predict_classes(
    model: Any, examples: Any, collate: Callable[[list[Any]], Any], batch_size: int, tick: Tick = lambda n: None
) -> NDArray[np.int64]:
    """The most probable class of every example: (N,), in the order of `examples`."""
    was_training = model.training
    model.eval()
    predicted = np.zeros(len(examples), dtype=np.int64)
    for rows, batch in batches(examples, collate, batch_size):
        batch = {k: v.to(model.device) for k, v in batch.items() if k != "labels"}
        predicted[rows] = model(**batch).logits.argmax(dim=-1).cpu().numpy()
        tick(len(rows))
    model.train(was_training)
    return predicted


@torch.inference_mode()
def token_loss(
    model: Any, examples: Any, collate: Callable[[list[Any]], Any], batch_size: int, tick: Tick = lambda n: None
) -> tuple[float, int]:
    """Mean cross-entropy in nats per predicted token, and the number of those tokens.

    Tokens with label -100 (padding, prompts) are not counted; every other one counts the same, in whatever batch.
    """
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    for rows, batch in batches(examples, collate, batch_size):
        batch = {k: v.to(model.device) for k, v in batch.items()}
        labels = batch.pop("labels")[:, 1:]
        logits = model(**batch).logits[:, :-1]
        losses = torch.nn.functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]).float(), labels.reshape(-1), ignore_index=-100, reduction="sum"
        )
        total += losses.item()
        count += int((labels != -100).sum())
        tick(len(rows))
    model.train(was_training)
    return total / max(count, 1), count
