"""The models: two real ones, and stacks of decoder layers of any width. The tokens are random."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaConfig, LlamaModel

from alloralib.training.models import load_model, locate

from .arms import Batch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CLASSES = 77
HEAD = 64


def smollm2(rows: int, length: int, dtype: str) -> tuple[Any, Batch]:
    """SmolLM2-135M and a batch of rows x length tokens with a label for each."""
    model = load_model(locate("smollm2-135m"), task="causal-lm", labels=None, dtype=DTYPES[dtype], pad_token_id=None)
    ids = _tokens(model.config.vocab_size, rows, length)
    return model, {"input_ids": ids, "labels": ids, "use_cache": False}


def minilm(rows: int, length: int, dtype: str) -> tuple[Any, Batch]:
    """MiniLM-L6 with a classifier of 77 classes, which is frozen like the rest of the model, and a batch."""
    labels = [str(i) for i in range(CLASSES)]
    torch.manual_seed(0)
    model = load_model(locate("minilm-l6"), task="classification", labels=labels, dtype=DTYPES[dtype], pad_token_id=0)
    ids = _tokens(model.config.vocab_size, rows, length)
    return model, {"input_ids": ids, "labels": torch.arange(rows) % CLASSES}


MODELS = {"smollm2": smollm2, "minilm": minilm}


def stack_config(width: int, layers: int) -> LlamaConfig:
    """Decoder layers in SmolLM2's proportions: heads of 64, a third or a quarter as many for keys and values, MLP of 8/3.

    Width 576 is the layer of SmolLM2-135M itself.
    """
    heads = width // HEAD
    return LlamaConfig(
        vocab_size=8,  # unused: the input is hidden states
        hidden_size=width,
        intermediate_size=-(-width * 8 // 3 // 256) * 256,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // (3 if heads % 3 == 0 else 4),
        max_position_embeddings=8192,
    )


def stack(width: int, layers: int, rows: int, length: int, dtype: str) -> tuple[Any, Batch]:
    """Layers from the middle of a model: their input needs a gradient."""
    torch.manual_seed(0)
    model: Any = LlamaModel(stack_config(width, layers))
    model.to(DTYPES[dtype])
    hidden = torch.randn(rows, length, width).to(DTYPES[dtype]).requires_grad_(True)
    return model, {"inputs_embeds": hidden, "use_cache": False}


def _tokens(vocabulary: int, rows: int, length: int) -> torch.Tensor:
    return torch.randint(3, vocabulary, (rows, length), generator=torch.Generator().manual_seed(0))
