"""Which question goes with which kind of task: one model asked about the rows of one table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..data.chat import conversations
from ..data.choices import questions
from ..data.forms import Columns, Kind
from ..data.table import Table
from ..errors import ConfigError, DataError
from .answers import Tick, classify, language_loss, nothing
from .choice import choose
from .generation import generate_answers
from .metrics import Evaluation, exact_match


@dataclass(frozen=True)
class Asked:
    """Rows to ask about, in every form that a question needs.

    Attributes:
        table, columns: the rows as they were read.
        examples: the rows as the model takes them, with `input_ids` and `labels`, or `pixel_values` and `labels`.
        collate: what makes a batch of examples.
        names: the classes, for a classifier.
    """

    kind: Kind
    table: Table
    columns: Columns
    examples: Any
    collate: Callable[[list[Any]], Any]
    names: list[str] | None


def ask(
    asked: Asked, model: Any, processor: Any, *, batch_size: int, choices: bool = True, generate: bool = False,
    tick: Tick = nothing,
) -> Evaluation:  # fmt: skip
    """The metrics of the task, and the answer to every row.

    Args:
        processor: the tokenizer, for language models.
        choices: score multiple choice by its choices; without, by the loss alone.
        generate: also let the model answer freely, and compare what it says with what is right.

    Raises:
        ConfigError, DataError: `generate` where there is no answer to compare with.
    """
    if asked.names is not None:
        return classify(model, asked.examples, asked.collate, asked.names, batch_size, tick)
    scored = language_loss(model, asked.examples, asked.collate, batch_size, tick)
    if asked.kind == "multiple-choice":
        if not choices:
            return scored
        rows = questions(asked.table, asked.columns)
        chosen = choose(
            model, processor, [q.prompt for q in rows], [q.choices for q in rows], [q.answer for q in rows],
            batch_size=batch_size, generate=generate, tick=tick,
        )  # fmt: skip
        return _joined(scored, chosen)
    if not generate:
        return scored
    prompts, references = _questions(asked)
    said = generate_answers(model, processor, prompts, batch_size=batch_size, tick=tick)
    return _joined(scored, exact_match(said, references))


def _questions(asked: Asked) -> tuple[list[Any], list[str]]:
    """The prompts, and what is to be answered: the completion, or the last turn of the assistant."""
    table, columns = asked.table, asked.columns
    if columns.messages is not None:
        turns = conversations(table, columns.messages)
        for row, messages in enumerate(turns):
            if messages[-1]["role"] != "assistant":
                raise DataError(
                    "the conversation does not end with the assistant's turn",
                    where=table.where(row), remedy="leave --generate out, or mend the row",
                )  # fmt: skip
        return [messages[:-1] for messages in turns], [messages[-1]["content"] for messages in turns]
    if columns.prompt is None or columns.completion is None:
        raise ConfigError(
            "--generate needs prompts and answers, and these rows are plain text",
            where=table.source,
            remedy="leave it out, or give --prompt-column and --completion-column",
        )
    return table.columns[columns.prompt], table.columns[columns.completion]


def _joined(one: Evaluation, other: Evaluation) -> Evaluation:
    """Metrics of both, and the items of one row in one."""
    known = {item["row"]: item for item in one.items}
    return Evaluation(one.metrics | other.metrics, [known.get(item["row"], {}) | item for item in other.items])
