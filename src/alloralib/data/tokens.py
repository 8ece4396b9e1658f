"""From tables to tokenised examples: text classification, and text for a causal language model."""

from __future__ import annotations

from collections import Counter
from typing import Any

import datasets

from ..errors import DataError
from .table import Table

Tokenizer = Any  # transformers' tokenizers share no useful static type


def label_names(table: Table, column: str) -> list[str]:
    """The classes of a label column, sorted; numbers are read as their text.

    Raises:
        DataError: no such column, a row without a label, or fewer than two classes.
    """
    names = sorted(set(labels(table, column)))
    if len(names) < 2:
        raise DataError(
            f"column {column!r} holds one class only, {names[0]!r}",
            where=table.source,
            remedy="give data with at least two classes, or name another --label-column",
        )
    return names


def labels(table: Table, column: str) -> list[str]:
    """The label of every row as text.

    Raises:
        DataError: no such column, or a row without a label.
    """
    values = table.column(column, "label-column")
    for row, value in enumerate(values):
        if value is None or not str(value).strip() or not isinstance(value, str | int):
            raise DataError(
                f"column {column!r} has no label but {value!r}",
                where=table.where(row),
                remedy="mend or remove the row, or name another --label-column",
            )
    return [str(value) for value in values]


def majority_share(names: list[str]) -> float:
    """The share of the most frequent class: what always answering it would score."""
    return max(Counter(names).values()) / len(names)


def classification_examples(
    table: Table, *, text: str, label: str, names: list[str], tokenizer: Tokenizer, max_length: int
) -> datasets.Dataset:
    """input_ids, attention_mask and labels per row.

    Raises:
        DataError: a text without a token, or a label that is not in `names`.
    """
    texts = table.texts(text, "text-column")
    check_tokens(table, texts, tokenizer)
    known = {name: index for index, name in enumerate(names)}
    targets: list[int] = []
    for row, name in enumerate(labels(table, label)):
        if name not in known:
            raise DataError(
                f"label {name!r} does not stand in the training data",
                where=table.where(row),
                remedy=f"its classes are {', '.join(names)}",
            )
        targets.append(known[name])
    encoded = tokenizer(texts, truncation=True, max_length=max_length)
    columns = {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"], "labels": targets}
    return datasets.Dataset.from_dict(columns)


def check_tokens(table: Table, texts: list[str], tokenizer: Tokenizer) -> list[int]:
    """The number of tokens of every text, without special tokens.

    Raises:
        DataError: a text that the tokenizer turns into nothing.
    """
    counts = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    for row, count in enumerate(counts):
        if count == 0:
            raise DataError(
                f"the text {texts[row][:40]!r} becomes no token at all",
                where=table.where(row),
                remedy="remove the row; to this tokenizer it is empty",
            )
    return counts


def language_examples(
    table: Table, *, text: str | None, prompt: str | None, completion: str | None, tokenizer: Tokenizer
) -> datasets.Dataset:
    """Rows in TRL's form: {"text"} or {"prompt", "completion"}; TRL's trainer tokenises and masks them.

    Raises:
        DataError: a text, a prompt or a completion without a token.
    """
    if text is not None:
        columns = {"text": table.texts(text, "text-column")}
    else:
        assert prompt is not None
        assert completion is not None
        columns = {
            "prompt": table.texts(prompt, "prompt-column"),
            "completion": table.texts(completion, "completion-column"),
        }
    for values in columns.values():
        check_tokens(table, values, tokenizer)
    return datasets.Dataset.from_dict(columns)
