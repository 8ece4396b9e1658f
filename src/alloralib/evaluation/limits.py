"""What a model can take: the length of a row, token ids and token type ids.

All of it is read from the model's modules. Configurations do not tell it: a RoBERTa with 514 position embeddings takes 512
tokens, a GPT-2 with 1024 takes 1024, and a Llama has no such table and takes more than it was trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import pyarrow.compute as pc
from torch import nn

from ..errors import DataError
from .next_token import takes

_TABLES = ("position_embeddings", "position_embedding", "wpe", "embed_positions", "positions_embed")
"""Names that transformers' models give to an embedding of positions."""
_BUFFERS = ("position_ids", "embed_positions", "pos_encoding")
"""Names of tensors with a row or a column per position: BERT's numbers, GPT-J's sines, CTRL's."""


class Limits(NamedTuple):
    """What a text model can take.

    Attributes:
        tokens: rows of its input embedding; every token id is below.
        positions: tokens of the longest row; None if its positions are computed for any length (rotary, ALiBi, relative).
        context: tokens of the rows that such a model was made for, by its configuration; None if that does not say.
        token_types: token type ids are below; 0 if it takes none, None if it takes any.
        pad_token_id: of its configuration.
        left_padding: whether rows can be padded on the left: it looks up no positions, or those that it is given from 0 on.
    """

    tokens: int
    positions: int | None
    context: int | None
    token_types: int | None
    pad_token_id: int | None
    left_padding: bool


def limits_of(model: Any) -> Limits:
    """The limits of a text model of transformers, with or without an adapter; its weights are not looked at."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = base.config.get_text_config()
    positions = min(_positions(base, config), default=None)
    types = _modules(base, ("token_type_embeddings",))
    from_padding = any(table.padding_idx is not None for table in _modules(base, _TABLES))
    return Limits(
        tokens=base.get_input_embeddings().weight.shape[0],
        positions=positions,
        context=getattr(config, "max_position_embeddings", None) if positions is None else positions,
        token_types=0 if not takes(base, "token_type_ids") else types[0].num_embeddings if types else None,
        pad_token_id=getattr(config, "pad_token_id", None),
        left_padding=positions is None or (takes(base, "position_ids") and not from_padding),
    )


def check_room(rows: Iterable[Sequence[int]], limits: Limits, where: Callable[[int], str]) -> None:
    """Check that the model can take a token after every row.

    Args:
        rows: token ids of prompts.
        where: called with the index of a row, says where it comes from.

    Raises:
        DataError: a prompt that fills the model's positions, or has more tokens.
    """
    for row, ids in enumerate(rows):
        if limits.positions is not None and len(ids) >= limits.positions:
            raise DataError(
                f"the prompt has {len(ids)} tokens, and the model can take {limits.positions} together with the answer",
                where=where(row),
                remedy="shorten or remove it",
            )


def check_examples(examples: Any, limits: Limits, tokenizer: Any, where: Callable[[int], str]) -> None:
    """`check_token_ids` for the rows of a `datasets.Dataset` with `input_ids`."""
    column = examples.select_columns(["input_ids"]).with_format("arrow")[:]["input_ids"]
    largest: Any = pc.max(pc.list_flatten(column))  # pyright: ignore[reportAttributeAccessIssue] (made at import)
    if (largest.as_py() or 0) >= limits.tokens:
        check_token_ids(examples["input_ids"], limits, tokenizer, where)


def check_token_ids(rows: Iterable[Sequence[int]], limits: Limits, tokenizer: Any, where: Callable[[int], str]) -> None:
    """Check that the model has an embedding for every token.

    Args:
        rows: token ids.
        where: called with the index of a row, says where it comes from.

    Raises:
        DataError: a token id without an embedding.
    """
    for row, ids in enumerate(rows):
        largest = max(ids, default=0)
        if largest >= limits.tokens:
            token = tokenizer.convert_ids_to_tokens(int(largest))
            raise DataError(
                f"token {token!r} has id {largest}, and the model has embeddings for ids below {limits.tokens} only",
                where=where(row),
                remedy="use the tokenizer that belongs to the model, remove the token from the text, or resize the model: "
                "model.resize_token_embeddings(len(tokenizer)), and save both",
            )


def _positions(base: Any, config: Any) -> list[int]:
    if getattr(config, "position_embedding_type", "absolute") != "absolute":
        return []  # ESM with rotary positions has a table that it does not use
    if config.model_type == "mpt":  # its ALiBi biases are made for this many positions
        return [config.max_seq_len]
    # RoBERTa counts positions from its padding id on, BART and OPT from 2 on
    found = [
        table.num_embeddings - (getattr(table, "offset", 0) if table.padding_idx is None else table.padding_idx + 1)
        for table in _modules(base, _TABLES)
    ]
    for name, buffer in base.named_buffers():
        if name.rpartition(".")[2] not in _BUFFERS or "visi" in name:
            continue
        if buffer.is_floating_point():
            found.append(buffer.shape[0])
        elif found:  # numbers are looked up in a table; DeBERTa-v3 has them without one
            found.append(buffer.shape[-1])
    return found


def _modules(base: Any, names: Sequence[str]) -> list[nn.Embedding]:
    """The embeddings of these names, without those of images."""
    named = ((name.removesuffix(".base_layer"), module) for name, module in base.named_modules())
    return [
        module for name, module in named
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in names and "visi" not in name
    ]  # fmt: skip
