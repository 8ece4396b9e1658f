"""Evaluate a model on the rows of one table, for every kind of task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..data.choices import questions
from ..data.conversations import Conversation, conversations
from ..data.forms import Columns, Kind
from ..data.stops import chat_template
from ..data.table import Table
from ..data.templates import ChatTemplate
from ..errors import ConfigError, DataError
from .batching import Progress, no_progress
from .choice import evaluate_choices
from .generation import Prompt, generate_answers
from .metrics import Evaluation, exact_match
from .scoring import evaluate_classifier, evaluate_loss


@dataclass(frozen=True)
class EvaluationData:
    """The rows of one table, in every form that an evaluation needs.

    Attributes:
        kind: of the task.
        table, columns: the rows as they were read.
        examples: the rows as the model takes them, from `data.examples.build_examples`.
        collate: makes a batch of examples.
        labels: the classes in the order of the logits; None for a language model.
        prompts: multiple choice: token ids that the model reads in place of each prompt's own (see `evaluate_choices`).
    """

    kind: Kind
    table: Table
    columns: Columns
    examples: Any
    collate: Callable[[list[Any]], Any]
    labels: list[str] | None
    prompts: list[list[int]] | None = None


def evaluate_examples(
    data: EvaluationData, model: Any, processor: Any, *, batch_size: int, choices: bool = True, generate: bool = False,
    progress: Progress = no_progress,
) -> Evaluation:  # fmt: skip
    """The metrics of the task, and the model's answer to every row.

    Args:
        processor: the tokenizer; not used for classifiers.
        choices: for multiple choice, also score the choices. False gives the loss alone, which costs less.
        generate: also let the model answer freely, and compare its answers with the right ones.
        progress: called with the number of rows that were just finished, in every pass over the rows.

    Raises:
        ConfigError, DataError: `generate`, and the rows have no answer to compare with.
    """
    if data.labels is not None:
        return evaluate_classifier(model, data.examples, data.collate, data.labels, batch_size, progress)
    scored = evaluate_loss(model, data.examples, data.collate, batch_size, progress)
    if data.kind == "multiple-choice":
        if not choices:
            return scored
        rows = questions(data.table, data.columns)
        chosen = evaluate_choices(
            model, processor, [q.prompt for q in rows], [q.choices for q in rows], [q.answer for q in rows],
            batch_size=batch_size, generate=generate, progress=progress, read=data.prompts,
        )  # fmt: skip
        return _merged(scored, chosen)
    if not generate:
        return scored
    prompts, references = _prompts_and_references(data.table, data.columns, processor)
    answers = generate_answers(model, processor, prompts, batch_size=batch_size, progress=progress)
    return _merged(scored, exact_match(answers, references))


def _prompts_and_references(table: Table, columns: Columns, tokenizer: Any) -> tuple[list[Prompt], list[str]]:
    """What is asked, and the right answer: the completion, or the last message of the conversation."""
    if columns.messages is not None:
        rows = conversations(table, columns.messages)
        for row, conversation in enumerate(rows):
            if conversation.messages[-1]["role"] != "assistant":
                raise DataError(
                    "the conversation does not end with a message of the assistant",
                    where=table.where(row), remedy="leave --generate out, or correct the row",
                )  # fmt: skip
        chat = chat_template(tokenizer)
        answers = [_answer(conversation, chat, table.where(row)) for row, conversation in enumerate(rows)]
        return [conversation.up_to(len(conversation.messages) - 1) for conversation in rows], answers
    if columns.prompt is None or columns.completion is None:
        raise ConfigError(
            "--generate needs prompts and answers, and these rows are plain text",
            where=table.source,
            remedy="leave it out, or give --prompt-column and --completion-column",
        )
    return table.columns[columns.prompt], table.columns[columns.completion]


def _answer(conversation: Conversation, chat: ChatTemplate, where: str) -> str:
    """The last answer as the model would write it. A tool call is what the chat template makes of it."""
    answer = conversation.messages[-1]
    if "tool_calls" not in answer:
        return answer["content"]
    asked = chat.encode(conversation.up_to(len(conversation.messages) - 1), where, prompt=True).ids
    return chat.tokenizer.decode(chat.encode(conversation, where).ids[len(asked) :], skip_special_tokens=True)


def _merged(one: Evaluation, other: Evaluation) -> Evaluation:
    """The metrics of both, and one item per row with the entries of both."""
    items = {item["row"]: item for item in one.items}
    return Evaluation(one.metrics | other.metrics, [items.get(item["row"], {}) | item for item in other.items])
