"""When two rows are the same example.

They are if the model is shown the same: the text, the image, the question. What it has to predict (label, answer) does not
count. White space and case are ignored: uncased tokenizers do not see them, and copies of a text on the web differ in them.
"""

from __future__ import annotations

import json

from .choices import questions
from .conversations import conversations
from .forms import Columns, Kind
from .images import content_key, image_sources
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


def _key(*texts: str) -> str:
    return "\x1f".join(map(normalized, texts))
