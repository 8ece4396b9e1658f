"""How many tokens a model can read at once, where its positions are looked up in a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from ..errors import DataError

_TABLES = ("wpe", "position_embeddings", "embed_positions", "position_embedding")
"""Names of the tables of transformers' models."""


def position_limit(model: Any) -> int | None:
    """The number of positions of a model whose positions are learnt; None if they are computed (rotary, ALiBi).

    RoBERTa and OPT keep the first entries of their table for padding.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in _TABLES:
            reserved = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - max(reserved, getattr(module, "offset", 0))
    return None


def check_positions(model: Any, lengths: Sequence[int], *, what: str, remedy: str) -> None:
    """Refuse inputs that the model has no positions for: on a CPU it would raise an IndexError, on a GPU end the process.

    Args:
        lengths: tokens of every input.
        what: an input is, for the error: "prompt" or "row".

    Raises:
        DataError: naming the first such input.
    """
    limit = position_limit(model)
    for number, length in enumerate(lengths, start=1):
        if limit is not None and length > limit:
            raise DataError(
                f"{length:,} tokens, but the model has {limit:,} positions", where=f"{what} {number}", remedy=remedy
            )
