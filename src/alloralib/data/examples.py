"""From a table to the examples that a trainer takes, per kind of task."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import datasets

from ..errors import DataError
from .chat import IGNORED, ChatEncoder, conversations
from .choices import questions
from .forms import Columns, Kind
from .images import Pixels, check_images, image_sources
from .labels import label_ids, label_names
from .table import Table

Processor = Any  # transformers' tokenizers and image processors share no useful static type
_SHOWN = 5  # row numbers in an error


def build_examples(
    kind: Kind,
    table: Table,
    columns: Columns,
    *,
    processor: Processor,
    names: list[str] | None = None,
    max_length: int | None = None,
) -> datasets.Dataset:
    """One example per row of the table, in its order; the column `row` is the row's index there.

    classification        input_ids, attention_mask (token_type_ids where the tokenizer makes them), labels
    image-classification  pixel_values: (3, H, W) float32, made when asked for; labels
    causal-lm             text, or prompt and completion: TRL's form, which its trainer tokenizes and masks
    multiple-choice       prompt and completion, which is the right choice
    chat                  input_ids, labels (-100 outside the assistant's answers); TRL's trainer takes them as they are

    Args:
        processor: the model's tokenizer or, for images, its image processor.
        names: the classes in the order of their numbers; by default those of this table.
        max_length: tokens per row; what is longer is cut on the right. None: nothing is cut.

    Raises:
        DataError: a row that cannot be trained on, among them one that has no trained token within `max_length`.
        ModelError: chat with a tokenizer whose template is not usable.
    """
    if kind == "classification":
        made = _classification(table, columns, processor, names, max_length)
    elif kind == "image-classification":
        return _images(table, columns, processor, names)
    elif kind == "chat":
        made = _chat(table, columns, processor, max_length)
    elif kind == "multiple-choice":
        rows = questions(table, columns)
        made = _completions(table, [q.prompt for q in rows], [q.choices[q.answer] for q in rows], processor, max_length)
    elif columns.text is not None:
        texts = table.texts(columns.text, "text-column")
        check_tokens(table, texts, processor)
        made = {"text": texts}
    else:
        assert columns.prompt is not None
        assert columns.completion is not None
        prompts = table.texts(columns.prompt, "prompt-column")
        made = _completions(table, prompts, table.texts(columns.completion, "completion-column"), processor, max_length)
    return datasets.Dataset.from_dict(made | {"row": list(range(len(table)))})


def collator(kind: Kind, processor: Processor) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
    """What makes a batch of examples of either kind of classification; `row` is left out of it.

    The kinds that train a language model use TRL's own collator.
    """
    from transformers import DataCollatorWithPadding, default_data_collator

    if kind == "classification":
        inner: Callable[[list[Any]], Any] = DataCollatorWithPadding(processor)
    elif kind == "image-classification":
        inner = default_data_collator
    else:
        raise ValueError(f"TRL collates {kind}")
    return partial(_without_row, inner)


def _without_row(collate: Callable[[list[Any]], Any], examples: list[dict[str, Any]]) -> Any:
    return collate([{name: value for name, value in example.items() if name != "row"} for example in examples])


def check_tokens(table: Table, texts: list[str], tokenizer: Processor) -> list[int]:
    """The number of tokens of every text, without special tokens.

    Raises:
        DataError: a text that the tokenizer turns into nothing.
    """
    counts = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]] if texts else []
    for row, count in enumerate(counts):
        if count == 0:
            raise DataError(
                f"the text {texts[row][:40]!r} becomes no token at all",
                where=table.where(row),
                remedy="remove the row; to this tokenizer it is empty",
            )
    return counts


def _classification(
    table: Table, columns: Columns, tokenizer: Processor, names: list[str] | None, max_length: int | None
) -> dict[str, Any]:
    assert columns.text is not None
    assert columns.label is not None
    texts = table.texts(columns.text, "text-column")
    pairs = None if columns.text_pair is None else table.texts(columns.text_pair, "text-pair-column")
    for given in (texts, pairs):
        check_tokens(table, given or [], tokenizer)
    targets = label_ids(table, columns.label, names or label_names(table, columns.label))
    encoded = tokenizer(texts, pairs, truncation=max_length is not None, max_length=max_length)
    return dict(encoded) | {"labels": targets}


def _images(table: Table, columns: Columns, processor: Processor, names: list[str] | None) -> datasets.Dataset:
    assert columns.image is not None
    assert columns.label is not None
    targets = label_ids(table, columns.label, names or label_names(table, columns.label))
    sources = image_sources(table, columns.image)
    check_images(table, sources)
    # the column has the name of what it becomes, so that a trainer that drops unused columns keeps it
    made = {"pixel_values": sources, "labels": targets, "row": list(range(len(table)))}
    return datasets.Dataset.from_dict(made).with_transform(Pixels(processor))


def _completions(
    table: Table, prompts: list[str], completions: list[str], tokenizer: Processor, max_length: int | None
) -> dict[str, Any]:
    check_tokens(table, prompts, tokenizer)
    check_tokens(table, completions, tokenizer)
    if max_length is not None and prompts:
        lengths = [len(ids) for ids in tokenizer(prompts)["input_ids"]]
        _refuse(table, [row for row, length in enumerate(lengths) if length >= max_length], max_length, "the prompt fills all")
    return {"prompt": prompts, "completion": completions}


def _chat(table: Table, columns: Columns, tokenizer: Processor, max_length: int | None) -> dict[str, Any]:
    assert columns.messages is not None
    encode = ChatEncoder(tokenizer)
    encoded = [encode(messages, table.where(row)) for row, messages in enumerate(conversations(table, columns.messages))]
    ids, targets = [one[:max_length] for one, _ in encoded], [one[:max_length] for _, one in encoded]
    silent = [row for row, labels in enumerate(targets) if all(label == IGNORED for label in labels[1:])]
    _refuse(table, silent, max_length, "no answer begins in the first")
    return {"input_ids": ids, "labels": targets}


def _refuse(table: Table, rows: list[int], max_length: int | None, why: str) -> None:
    """Raise where rows have no trained token; their loss would be the mean of nothing."""
    if rows:
        others = f" (and {len(rows) - 1} more: {', '.join(table.where(row) for row in rows[1:_SHOWN])})" if rows[1:] else ""
        raise DataError(
            f"no trained token: {why} {max_length} tokens{others}",
            where=table.where(rows[0]),
            remedy="raise --max-length, or remove these rows",
        )
