"""When two rows are the same example.

They are if the model is shown the same: the text, the image, the question. What it has to predict (label, answer) does not
count. White space and case are ignored: uncased tokenizers do not see them, and copies of a text on the web differ in them.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass

from .choices import questions
from .conversations import conversations
from .forms import Columns, Kind
from .images import content_key, image_sources
from .labels import labels
from .table import Table


def normalized(text: str) -> str:
    r"""A text without what is ignored.

    >>> normalized("  Good\n Film ")
    'good film'
    """
    return " ".join(text.casefold().split())


def example_keys(kind: Kind, table: Table, columns: Columns) -> list[str]:
    """A key per row, equal for rows that show the model the same. No key may be in two parts of a run's data.

    For a conversation it is everything that is not said by the assistant; all of it if the user says nothing.

    Raises:
        DataError: a column or a part of a row is missing or malformed.
    """
    if kind == "image-classification":
        assert columns.image is not None
        return [content_key(source) for source in image_sources(table, columns.image)]
    if kind == "multiple-choice":
        return [_key(q.prompt, *q.choices) for q in questions(table, columns)]
    if kind == "chat":
        assert columns.messages is not None
        keys: list[str] = []
        for messages in (conversation.messages for conversation in conversations(table, columns.messages)):
            asked = [m for m in messages if m["role"] not in ("assistant", "system", "developer")]
            keys.append(_key(*(f"{m['role']}: {m['content']}" for m in messages if m["role"] != "assistant" or not asked)))
        return keys
    shown = [part for part in ("text", "text_pair", "prompt") if getattr(columns, part) is not None]
    texts = [table.texts(getattr(columns, part), f"{part.replace('_', '-')}-column") for part in shown]
    return [_key(*row) for row in zip(*texts, strict=True)]


def row_keys(kind: Kind, table: Table, columns: Columns) -> list[str]:
    """A key per row, equal for rows of which training needs only one: the example's key together with the answer.

    Several completions of one prompt, or several answers in one conversation, are several rows.
    """
    keys = example_keys(kind, table, columns)
    if kind == "chat":
        assert columns.messages is not None
        talks = conversations(table, columns.messages)
        answers = [json.dumps([t.messages, t.tools, sorted(t.untrained)], sort_keys=True, default=str) for t in talks]
    elif columns.completion is not None:
        answers = table.texts(columns.completion, "completion-column")
    else:
        return keys
    return [_key(key, answer) for key, answer in zip(keys, answers, strict=True)]


@dataclass(frozen=True)
class Repeats:
    """The rows of a table that say the same as another one, or the same of another class.

    Attributes:
        kept: rows to keep, in their order.
        repeated: how many others say the same as a row that is kept.
        conflicting: how many others have another answer than their example's rows that are kept, or are in a tie.
        conflicts: the rows of every example with several answers.
        examples: the number of different examples.
        answers: (N,), of every row; empty for tasks in which an example may have several answers.
        rule: which rows of `conflicts` are kept, in words.
    """

    kept: list[int]
    repeated: int
    conflicting: int
    conflicts: list[list[int]]
    examples: int
    answers: list[str]
    rule: str


def find_repeats(kind: Kind, table: Table, columns: Columns, *, keep_first: bool = False) -> Repeats:
    """Find rows of which training needs only one.

    Args:
        keep_first: of equal examples with different answers keep the first; else one with the most frequent answer, none if
            several answers are as frequent.

    Raises:
        DataError: a column or a part of a row is missing or malformed.
    """
    groups: dict[str, list[int]] = {}
    for row, key in enumerate(row_keys(kind, table, columns)):
        groups.setdefault(key, []).append(row)
    answers: list[str] = []
    if kind == "multiple-choice":
        answers = [question.choices[question.answer] for question in questions(table, columns)]
    elif columns.label is not None:
        answers = labels(table, columns.label)
    kept: list[int] = []
    conflicts: list[list[int]] = []
    conflicting = 0
    for rows in groups.values():
        first, of_others = rows[0], 0
        if answers and len(counts := Counter(answers[row] for row in rows)) > 1:
            conflicts.append(rows)
            (answer, most), (_, second) = counts.most_common(2)
            if keep_first:
                answer = answers[first]
            elif most == second:
                conflicting += len(rows)
                continue
            first = next(row for row in rows if answers[row] == answer)
            of_others = len(rows) - counts[answer]
        kept.append(first)
        conflicting += of_others
    rule = "the first is kept" if keep_first else "the most frequent label is kept, no row if there is a tie"
    repeated = len(table) - len(kept) - conflicting
    return Repeats(sorted(kept), repeated, conflicting, conflicts, len(groups), answers, rule)


def _key(*texts: str) -> str:
    return "\x1f".join(map(normalized, texts))
