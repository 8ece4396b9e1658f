"""The features of a model without its head: what a linear probe reads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .batching import Collate, Progress, batches, evaluation_mode, no_progress


def mean_features(model: Any, examples: Any, collate: Collate, batch_size: int, progress: Progress = no_progress) -> Tensor:
    """The mean of the last hidden states over the tokens of a text, or over the patches of an image; of an encoder-decoder,
    those of its encoder.

    Args:
        model: a classifier of transformers, with or without PEFT's wrapper; its head is not used.
        examples: a `datasets.Dataset` from `data.examples.build_examples`. Its labels are not used.
        collate: makes a batch of tensors of a list of examples.

    Returns:
        (len(examples), hidden size), float32, on the CPU.
    """
    classifier = model.get_base_model() if hasattr(model, "get_base_model") else model
    body = classifier.base_model
    if getattr(classifier.config, "is_encoder_decoder", False):
        body = body.get_encoder()
    features: dict[int, Tensor] = {}
    with evaluation_mode(model):
        for rows, batch in batches(examples, collate, batch_size):
            inputs = {name: tensor.to(model.device) for name, tensor in batch.items() if name != "labels"}
            if "pixel_values" in inputs:
                inputs["pixel_values"] = inputs["pixel_values"].to(classifier.dtype)
            hidden = body(**inputs).last_hidden_state.float()
            if hidden.dim() == 4:  # of a convolutional network: (batch, channels, height, width)
                pooled = hidden.mean(dim=(2, 3))
            elif "attention_mask" in inputs:
                mask = inputs["attention_mask"].unsqueeze(-1).float()
                pooled = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
            else:
                pooled = hidden.mean(dim=1)
            features |= zip(rows, pooled.cpu(), strict=True)
            progress(len(rows))
    return torch.stack([features[row] for row in range(len(examples))])
