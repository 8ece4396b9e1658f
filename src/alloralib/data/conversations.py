"""Conversations as data sets hold them, read into one form: OpenAI's messages and tools.

messages    a list of {"role", "content"} (OpenAI) or {"from", "value"} (ShareGPT); also as JSON text, as in a CSV cell
system      a column with the system text, which becomes the first message
tools       a column with the tools that the assistant may call: a list of schemas, also as JSON text
weight      of an assistant's message, 0 or 1 (or "train", false or true): 0 is shown to the model and not trained
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import DataError, did_you_mean
from .calls import called, tool_calls, tools_of, without_nulls
from .readers import refuse_half_characters
from .table import Table

ROLES = {
    "system": "system",
    "developer": "developer",
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot"), "assistant"),
    **dict.fromkeys(("function_call", "tool_call"), "call"),
    **dict.fromkeys(("tool", "observation", "function", "ipython", "tool_response"), "tool"),
}
"""Role names found in data sets, and the names that chat templates know; the content of a "call" is a tool call as JSON."""

_SHAREGPT = {"from": "role", "value": "content"}
_EXAMPLE = 'write [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'
_WEIGHTS = ("weight", "train")

Message = dict[str, Any]


@dataclass(frozen=True)
class Conversation:
    """One conversation.

    Attributes:
        messages: each with `role` and `content`, and what else it came with (`tool_calls`, `name`, `reasoning_content`, ...).
        tools: schemas of the tools that the assistant may call; None without tools.
        untrained: the indices of the assistant's messages that are not trained.
    """

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    untrained: frozenset[int] = frozenset()

    def up_to(self, count: int) -> Conversation:
        """Its first `count` messages."""
        return Conversation(self.messages[:count], self.tools)


def conversations(table: Table, column: str, *, unanswered: bool = False) -> list[Conversation]:
    """The conversation of every row.

    If the default column `messages` is missing, ShareGPT's `conversations` is used. The columns `system` and `tools` belong
    to the conversation where they exist.

    Args:
        unanswered: for a model to answer: without the last message if that is the assistant's, which may be empty.

    Raises:
        DataError: not a conversation, an unknown role, a malformed tool or tool call, or no answer to learn from (no message to
            answer).
    """
    if column == "messages" and column not in table.columns and "conversations" in table.columns:
        column = "conversations"
    cells, nothing = table.column(column, "messages-column"), [None] * len(table)
    systems, tools = (table.columns.get(name, nothing) for name in ("system", "tools"))
    found: list[Conversation] = []
    for row, parts in enumerate(zip(cells, systems, tools, strict=True)):
        where = table.where(row)
        conversation = _conversation(*parts, where, unanswered=unanswered)
        found.append(conversation if unanswered else _learnable(conversation, where))
    return found


def read_prompt(
    prompt: str | Sequence[Message] | Mapping[str, Any] | Conversation, where: str, system: str | None = None
) -> Conversation:
    """A conversation for the assistant to answer.

    Args:
        prompt: a text (a message of the user), a list of messages, or a row of data: {"messages": ...} or {"prompt": ...},
            and optionally {"tools": ...} and {"system": ...}.
        system: the system text of a prompt that has none.

    Raises:
        DataError: it is malformed, has another system text, or its last message is the assistant's.
    """
    if isinstance(prompt, Conversation):
        first = _system(system, prompt.messages[0], where)
        return Conversation([*first, *prompt.messages], prompt.tools)
    row = prompt if isinstance(prompt, Mapping) else {"messages": prompt}
    cell = next((row[name] for name in ("messages", "conversations", "prompt") if row.get(name) is not None), None)
    if isinstance(cell, str) and not ("messages" in row and isinstance(prompt, Mapping)):
        cell = [{"role": "user", "content": cell}]
    conversation = _conversation(cell, system if row.get("system") is None else row["system"], row.get("tools"), where)
    if conversation.messages[-1]["role"] == "assistant":
        remedy = "remove its last message: the model answers it"
        raise DataError("the conversation ends with an answer of the assistant", where=where, remedy=remedy)
    return conversation


def _conversation(cell: Any, system: Any, tools: Any, where: str, *, unanswered: bool = False) -> Conversation:
    if isinstance(cell, str):
        text = cell
        try:
            cell = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"the conversation is not JSON: {error}", where=where, remedy=_EXAMPLE) from None
        refuse_half_characters(cell, text, where)
    if not isinstance(cell, list | tuple) or not all(isinstance(message, dict) for message in cell):
        raise DataError(f"expected a list of messages, got {str(cell)[:60]!r}", where=where, remedy=_EXAMPLE)
    if not cell:
        raise DataError("an empty conversation", where=where, remedy="remove the row, or give it messages")
    if unanswered and ROLES.get(str(cell[-1].get("role") or cell[-1].get("from"))) in ("assistant", "call"):
        cell = cell[:-1]
        if not cell:
            raise DataError("nothing to answer", where=where, remedy="put a message of the user first")
    places = [f"{where}, message {i}" for i in range(1, len(cell) + 1)]
    read = [_message(message, place) for message, place in zip(cell, places, strict=True)]
    first = _system(system, read[0][0], where)
    untrained = frozenset(i for i, (_, trained) in enumerate(read, start=len(first)) if not trained)
    return Conversation([*first, *(message for message, _ in read)], tools_of(tools, where), untrained)


def _learnable(conversation: Conversation, where: str) -> Conversation:
    answers = {i for i, message in enumerate(conversation.messages) if message["role"] == "assistant"}
    if not answers:
        remedy = "remove the row; for plain text use --task causal-lm"
        raise DataError("no message of the assistant, so nothing to learn", where=where, remedy=remedy)
    if answers <= conversation.untrained:
        remedy = "remove the row, or give one of its answers the weight 1"
        raise DataError("every answer has the weight 0, so nothing to learn", where=where, remedy=remedy)
    return conversation


def _system(text: Any, first: Message, where: str) -> list[Message]:
    """The message of a row's system text; none if the conversation has the same itself."""
    if text is None or text == "":
        return []
    if not isinstance(text, str):
        what = f"the column 'system' is not text but {str(text)[:60]!r}"
        raise DataError(what, where=where, remedy="give the system text, or rename the column")
    if first["role"] not in ("system", "developer"):
        return [{"role": "system", "content": text}]
    if first["content"].strip() != text.strip():
        what = "two system texts: that beside the messages and the first message differ"
        raise DataError(what, where=where, remedy="keep one of them; rename a column 'system' that means something else")
    return []


def _message(written: Message, where: str) -> tuple[Message, bool]:
    """A message, and whether it is trained (if it is an answer)."""
    # Parquet gives every message every key of the column, None where the message has no such key
    message: Message = without_nulls({_SHAREGPT.get(key, key): value for key, value in written.items()})
    name = message.get("role")
    if not isinstance(name, str) or name not in ROLES:
        raise DataError(f"unknown role {name!r}", where=where, remedy=did_you_mean(str(name), ROLES))
    role = ROLES[name]
    trained = _is_trained(message, role in ("assistant", "call"), where)
    message = {key: value for key, value in message.items() if key not in _WEIGHTS}
    if role == "call":
        message |= {"role": "assistant", "content": "", "tool_calls": called(message.get("content"), where)}
        return message, trained
    message |= {"role": role, "content": _content(message, where)}
    old = message.pop("function_call", None)
    if role == "assistant":
        calls = tool_calls(message.pop("tool_calls", None), where) or ([] if old is None else called(old, where))
        if calls:
            message["tool_calls"] = calls
        elif not message["content"].strip():
            raise DataError("the assistant's message is empty", where=where, remedy="remove the row, or give the answer")
    return message, trained


def _content(message: Message, where: str) -> str:
    content = message.get("content", "")
    if isinstance(content, list):
        if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
            raise DataError("a part of the content is not text", where=where, remedy="remove it: chat is trained on text only")
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise DataError(f"the content is not text but {str(content)[:60]!r}", where=where, remedy=_EXAMPLE)
    return content


def _is_trained(message: Message, is_answer: bool, where: str) -> bool:
    """What `weight` (OpenAI) and `train` (axolotl) of a message say; True where neither is given."""
    given = {key: message[key] for key in _WEIGHTS if key in message}
    for key, value in given.items():
        if value not in (0, 1):
            remedy = "use 0 (shown to the model, not trained) or 1; repeat a row that is to weigh more"
            raise DataError(f"{key} is {value!r}", where=where, remedy=remedy)
    if len(set(map(bool, given.values()))) > 1:
        raise DataError("weight and train contradict each other", where=where, remedy="keep one of them")
    trained = all(given.values())
    if not is_answer and not trained:
        return True
    if given and not is_answer:
        what = f"{next(iter(given))} {next(iter(given.values()))!r} on a message of another role than the assistant"
        raise DataError(what, where=where, remedy="remove it: only answers of the assistant are trained")
    return trained
