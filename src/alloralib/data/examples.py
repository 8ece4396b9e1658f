"""From a table to the examples that a model is trained on, for every kind of task."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import datasets

from .forms import LANGUAGE, Columns, Kind
from .images import Pixels, check_images, image_sources
from .labels import label_ids, label_names
from .language import check_tokens, collate_rows, encode_rows
from .table import Table

Processor = Any  # transformers' tokenizers and image processors share no useful static type
Collate = Callable[[list[dict[str, Any]]], dict[str, Any]]


def build_examples(
    kind: Kind,
    table: Table,
    columns: Columns,
    *,
    processor: Processor,
    names: list[str] | None = None,
    max_length: int | None = None,
) -> datasets.Dataset:
    """One example per row of the table, in its order. The column `row` is the row's index in the table.

    classification          input_ids, attention_mask (token_type_ids where the tokenizer makes them), labels: class index
                            (no labels without a label column)
    image-classification    pixel_values: (3, H, W) float32, made when they are asked for; labels: class index
    causal-lm, chat,        input_ids and labels, (T,) each; a label is the token's id where it is trained, else -100
    multiple-choice         (the right choice is the completion of the prompt)

    Args:
        processor: the model's tokenizer or, for images, its image processor.
        names: the classes in the order of their indices; by default those of this table.
        max_length: tokens per row, the rest is cut on the right; None cuts nothing.

    Raises:
        DataError: a row that cannot be trained on, or that has no trained token within `max_length`.
        ModelError: chat, with a tokenizer whose chat template cannot be used.
    """
    rows = list(range(len(table)))
    if kind in LANGUAGE:
        encoded = encode_rows(kind, table, columns, processor, max_length)
        return datasets.Dataset.from_dict(
            {"input_ids": [ids for ids, _ in encoded], "labels": [labels for _, labels in encoded], "row": rows}
        )
    numbers: dict[str, list[int]] = {"row": rows}
    if columns.label is not None:
        numbers["labels"] = label_ids(table, columns.label, names or label_names(table, columns.label))
    if kind == "image-classification":
        assert columns.image is not None
        sources = image_sources(table, columns.image)
        check_images(table, sources)
        # named like what they become, so that a trainer that drops unused columns keeps them
        return datasets.Dataset.from_dict({"pixel_values": sources} | numbers).with_transform(Pixels(processor))
    encoded = _encoded_texts(table, columns, processor, max_length)
    return datasets.Dataset.from_dict(encoded | numbers)


def collator(kind: Kind, processor: Processor) -> Collate:
    """A function that makes a batch of tensors of a list of examples; `row` is left out.

    Texts are padded to the longest of the batch: on the right for language models, on the tokenizer's side for classifiers.
    """
    from transformers import DataCollatorWithPadding, default_data_collator

    if kind in LANGUAGE:
        pad = processor.pad_token_id if processor.pad_token_id is not None else processor.eos_token_id
        return partial(collate_rows, pad_token_id=pad or 0)
    if kind == "image-classification":
        return partial(_without_row, default_data_collator)
    return partial(_without_row, DataCollatorWithPadding(processor))


def _without_row(collate: Callable[[list[Any]], Any], examples: list[dict[str, Any]]) -> Any:
    return collate([{name: value for name, value in example.items() if name != "row"} for example in examples])


def _encoded_texts(table: Table, columns: Columns, tokenizer: Processor, max_length: int | None) -> dict[str, Any]:
    assert columns.text is not None
    texts = table.texts(columns.text, "text-column")
    pairs = None if columns.text_pair is None else table.texts(columns.text_pair, "text-pair-column")
    for given in (texts, pairs or []):
        check_tokens(table, given, tokenizer)
    return dict(tokenizer(texts, pairs, truncation=max_length is not None, max_length=max_length))
