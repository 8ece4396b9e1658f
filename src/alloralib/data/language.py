"""Token ids and labels of the rows that a causal language model is trained on.

The same tokens and labels as TRL's SFTTrainer makes (tests/data/test_language.py compares the two):

    text                    the text and the end-of-text token; every token is trained
    prompt and completion   the joint text and the end-of-text token; the completion is trained. It starts where the tokens
                            of the prompt alone and of the joint text first differ.
    chat                    the chat template's text; the assistant's answers are trained (chat.py)

The tokenizer adds its own special tokens. Rows are cut on the right.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from ..errors import DataError
from .chat import IGNORED, ChatEncoder, Encoded
from .choices import questions
from .conversations import conversations
from .forms import Columns, Kind
from .table import Table

_SHOWN = 5  # row numbers in an error


def encode_rows(kind: Kind, table: Table, columns: Columns, tokenizer: Any, max_length: int | None) -> list[Encoded]:
    """Input ids and labels of every row, in the table's order.

    Args:
        max_length: tokens per row, the rest is cut; None cuts nothing.

    Raises:
        DataError: a malformed row, a text without tokens, or a row without a trained token within `max_length`.
        ModelError: chat, with a tokenizer whose chat template cannot be used.
    """
    if kind == "chat":
        assert columns.messages is not None
        encode = ChatEncoder(tokenizer)
        rows = [encode(talk, table.where(row)) for row, talk in enumerate(conversations(table, columns.messages))]
    elif kind == "multiple-choice":
        asked = questions(table, columns)
        rows = _completions(table, [q.prompt for q in asked], [q.choices[q.answer] for q in asked], tokenizer)
    elif columns.text is not None:
        rows = _texts(table, table.texts(columns.text, "text-column"), tokenizer)
    else:
        assert columns.prompt is not None
        assert columns.completion is not None
        prompts = table.texts(columns.prompt, "prompt-column")
        rows = _completions(table, prompts, table.texts(columns.completion, "completion-column"), tokenizer)
    if max_length is not None:
        rows = [(ids[:max_length], labels[:max_length]) for ids, labels in rows]
        _refuse_untrained(table, rows, max_length)
    return rows


def collate_rows(rows: Sequence[dict[str, Any]], pad_token_id: int) -> dict[str, torch.Tensor]:
    """A batch of rows, padded on the right whatever side the tokenizer would choose.

    Returns:
        input_ids, attention_mask and labels (-100 at padding), int64, (batch, longest) each.
    """

    def padded(values: Any, padding: int) -> torch.Tensor:
        return pad_sequence([torch.as_tensor(value) for value in values], batch_first=True, padding_value=padding)

    ids = [row["input_ids"] for row in rows]
    return {
        "input_ids": padded(ids, pad_token_id),
        "attention_mask": padded(([1] * len(row) for row in ids), 0),
        "labels": padded((row["labels"] for row in rows), IGNORED),
    }


def check_tokens(table: Table, texts: Sequence[str], tokenizer: Any) -> None:
    """Raise `DataError` for a text that the tokenizer turns into no token at all."""
    encoded = tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
    for row, ids in enumerate(encoded):
        if not ids:
            what = f"the tokenizer makes no token of the text {texts[row][:40]!r}"
            raise DataError(what, where=table.where(row), remedy="remove the row: to this tokenizer it is empty")


def _texts(table: Table, texts: list[str], tokenizer: Any) -> list[Encoded]:
    check_tokens(table, texts, tokenizer)
    return [(ids, list(ids)) for ids in token_ids(tokenizer, [_ended(text, tokenizer) for text in texts])]


def _completions(table: Table, prompts: list[str], completions: list[str], tokenizer: Any) -> list[Encoded]:
    for texts in (prompts, completions):
        check_tokens(table, texts, tokenizer)
    joint = [prompt + _ended(completion, tokenizer) for prompt, completion in zip(prompts, completions, strict=True)]
    rows: list[Encoded] = []
    for prompt_ids, ids in zip(token_ids(tokenizer, prompts), token_ids(tokenizer, joint), strict=True):
        # tokens can merge across the border, and a tokenizer may close the prompt with a token of its own
        differ = (i for i, (a, b) in enumerate(zip(prompt_ids, ids, strict=False)) if a != b)
        start = next(differ, min(len(prompt_ids), len(ids)))
        rows.append((ids, [IGNORED] * start + ids[start:]))
    return rows


def _ended(text: str, tokenizer: Any) -> str:
    """The text with the end-of-text token, once."""
    end = tokenizer.eos_token or ""
    return text if text.endswith(end) else text + end


def token_ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """The tokens of each text with those that the tokenizer puts around it.

    A text that begins with the token that the tokenizer puts in front, as texts of a chat template do, has it once.
    """
    rows: list[list[int]] = tokenizer(texts)["input_ids"] if texts else []
    bos, begin = tokenizer.bos_token_id, tokenizer.bos_token
    if bos is None:
        return rows
    doubled = [ids[:2] == [bos, bos] and not text.startswith(begin * 2) for ids, text in zip(rows, texts, strict=True)]
    return [ids[1:] if twice else ids for ids, twice in zip(rows, doubled, strict=True)]


def _refuse_untrained(table: Table, rows: list[Encoded], max_length: int) -> None:
    """Raise for rows without a trained token. The first token is never trained: nothing comes before it."""
    untrained = [row for row, (_, labels) in enumerate(rows) if all(label == IGNORED for label in labels[1:])]
    if untrained:
        first, *others = untrained
        more = f" (and {len(others)} more: {', '.join(table.where(row) for row in others[: _SHOWN - 1])})" if others else ""
        remedy = "raise --max-length, or remove these rows"
        raise DataError(f"no trained token among the first {max_length}{more}", where=table.where(first), remedy=remedy)
