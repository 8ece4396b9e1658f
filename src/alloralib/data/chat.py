"""Conversations: how they are read, and which of their tokens are trained (the assistant's answers and what ends each).

Foreign API used here, beside transformers': `trl.chat_template_utils.get_training_chat_template` (TRL 1.15 and 1.16, optional).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from jinja2 import TemplateError

from ..errors import DataError, ModelError, did_you_mean
from .readers import refuse_half_characters
from .table import Table

IGNORED = -100
"""The label that torch's cross-entropy ignores."""

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "tool": "tool",
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot"), "assistant"),
}
"""Role names found in data sets, and the names that chat templates know."""

_SHAREGPT = {"from": "role", "value": "content"}
_EXAMPLE = 'write [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'
_MARKERS = "give the tokenizer a template with {% generation %} markers around the assistant's answers"

Message = dict[str, Any]
Encoded = tuple[list[int], list[int]]  # token ids and labels, (T,) each


def conversations(table: Table, column: str, *, unanswered: bool = False) -> list[list[Message]]:
    """The conversation of every row in OpenAI's format: a list of messages with `role` and `content`.

    Accepted are lists of {"role", "content"} (OpenAI) and of {"from", "value"} (ShareGPT), written as JSON in a CSV cell.
    A content may be a list of text parts. If the default column `messages` is missing, ShareGPT's `conversations` is used.

    Args:
        unanswered: for a model to answer: without the last message if that is the assistant's, which may be empty.

    Raises:
        DataError: not a conversation, an unknown role, or no message of the assistant to learn from (of the others to answer).
    """
    if column == "messages" and column not in table.columns and "conversations" in table.columns:
        column = "conversations"
    cells = table.column(column, "messages-column")
    return [_conversation(cell, table.where(row), unanswered) for row, cell in enumerate(cells)]


def _conversation(cell: Any, where: str, unanswered: bool) -> list[Message]:
    if isinstance(cell, str):
        text = cell
        try:
            cell = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"the conversation is not JSON: {error}", where=where, remedy=_EXAMPLE) from None
        refuse_half_characters(cell, text, where)
    if not isinstance(cell, list) or not all(isinstance(message, dict) for message in cell):
        raise DataError(f"expected a list of messages, got {str(cell)[:60]!r}", where=where, remedy=_EXAMPLE)
    if not cell:
        raise DataError("an empty conversation", where=where, remedy="remove the row, or give it messages")
    if unanswered and ROLES.get(str(cell[-1].get("role") or cell[-1].get("from"))) == "assistant":
        cell = cell[:-1]
        if not cell:
            raise DataError("nothing to answer", where=where, remedy="put a message of the user first")
    messages = [_message(message, f"{where}, message {i}") for i, message in enumerate(cell, start=1)]
    if not unanswered and not any(message["role"] == "assistant" for message in messages):
        remedy = "remove the row; for plain text use --task causal-lm"
        raise DataError("no message of the assistant, so nothing to learn", where=where, remedy=remedy)
    return messages


def _message(written: Message, where: str) -> Message:
    # Parquet gives every message every key of the column, None where the message has no such key
    message = {_SHAREGPT.get(key, key): value for key, value in written.items() if value is not None}
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise DataError(f"unknown role {role!r}", where=where, remedy=did_you_mean(str(role), ROLES))
    content = message.get("content", "")
    if isinstance(content, list):
        if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
            raise DataError("a part of the content is not text", where=where, remedy="remove it: chat is trained on text only")
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise DataError(f"the content is not text but {str(content)[:60]!r}", where=where, remedy=_EXAMPLE)
    if not content.strip() and ROLES[role] == "assistant" and not message.get("tool_calls"):
        raise DataError("the assistant's message is empty", where=where, remedy="remove the row, or give the answer")
    return message | {"role": ROLES[role], "content": content}


class ChatEncoder:
    """Turns conversations into token ids and labels with a tokenizer's chat template.

    What is trained is found in one of three ways, chosen once per tokenizer:

    1. The template has `{% generation %}` markers that include the token that ends a turn: the marked tokens are trained.
    2. Else by difference: the conversation is rendered up to each answer and up to its end. The text in between is
       trained, without white space after the token that ends the turn. This needs a template that is prefix-preserving
       (earlier messages are rendered the same, whatever follows).
    3. If that fails on a small conversation (no prefix-preserving template, or no token that ends a turn), TRL's training
       version of the template, if TRL has one. TRL must then be installed, so the tokens never depend on whether it is.

    Args:
        tokenizer: a fast tokenizer of transformers with a chat template.

    Raises:
        ModelError: no chat template, a slow tokenizer, or a template that needs TRL, which is not installed.
    """

    def __init__(self, tokenizer: Any) -> None:
        where = tokenizer.name_or_path or None
        if not tokenizer.chat_template:
            remedy = "use an instruction-tuned model, or --task causal-lm with --prompt-column and --completion-column"
            raise ModelError("the tokenizer has no chat template", where=where, remedy=remedy)
        if not tokenizer.is_fast:
            what = "a slow tokenizer, which does not report the position of each token in the text"
            raise ModelError(what, where=where, remedy="use a model with a fast tokenizer (tokenizer.json)")
        self.tokenizer = tokenizer
        self._ends = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
        self.template: str | None = None
        """The template with markers; None where answers are found by difference."""
        own = tokenizer.get_chat_template()
        if "generation %}" in own and self._is_usable(lambda messages: self._by_markers(messages, own)):
            self.template = own
        elif not self._is_usable(lambda messages: self._by_difference(messages, "")):
            self.template = self._template_of_trl(where)

    def __call__(self, messages: list[Message], where: str) -> Encoded:
        """Token ids and labels of a conversation, (T,) each. A label is the token's id where it is trained, else -100.

        Raises:
            DataError: the template refuses the conversation.
            ModelError: the template is not prefix-preserving on this conversation.
        """
        try:
            if self.template is None:
                return self._by_difference(messages, where)
            return self._by_markers(messages, self.template)
        except TemplateError as error:
            remedy = "correct the order of the roles, or remove the row"
            raise DataError(f"the chat template refuses the conversation: {error}", where=where, remedy=remedy) from None

    def _by_markers(self, messages: list[Message], template: str) -> Encoded:
        encoded = self.tokenizer.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, chat_template=template
        )
        ids, mask = list(encoded["input_ids"]), encoded["assistant_masks"]
        return ids, [i if trained else IGNORED for i, trained in zip(ids, mask, strict=True)]

    def _by_difference(self, messages: list[Message], where: str) -> Encoded:
        text = self._render(messages)
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = list(encoded["input_ids"]), encoded["offset_mapping"]
        labels = [IGNORED] * len(ids)
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self._render(messages[:i], add_generation_prompt=True)
            after = self._render(messages[: i + 1])
            if not (after.startswith(before) and text.startswith(after)):
                what = "the chat template is not prefix-preserving: it renders earlier messages differently once more follow"
                raise ModelError(what, where=where, remedy=_MARKERS)
            # a token that starts before the answer and reaches into it is trained, as it is with markers
            span = [t for t, (start, end) in enumerate(offsets) if start < len(after) and end > len(before)]
            for t in self._until_the_end(ids, span):
                labels[t] = ids[t]
        return ids, labels

    def _until_the_end(self, ids: list[int], span: list[int]) -> list[int]:
        """The span without white space after the token that ends the turn."""
        last = max((n for n, t in enumerate(span) if ids[t] in self._ends), default=None)
        if last is None or self.tokenizer.decode([ids[t] for t in span[last + 1 :]]).strip():
            return span
        return span[: last + 1]

    def _render(self, messages: list[Message], *, add_generation_prompt: bool = False) -> str:
        return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)

    def _is_usable(self, encode: Callable[[list[Message]], Encoded]) -> bool:
        """Whether a way to encode finds the answers of a small conversation, each to a token that ends a turn.

        The last answer is followed by a message, because some templates end a turn only where another begins.
        """
        try:
            _, labels = encode(_PROBE)
        except (TemplateError, ModelError):
            return False
        trained = [i for i in labels if i != IGNORED and self.tokenizer.decode([i]).strip()]
        return bool(trained) and trained[-1] in self._ends

    def _template_of_trl(self, where: str | None) -> str | None:
        """TRL's version of the tokenizer's template with markers; None if TRL has none."""
        try:
            from trl.chat_template_utils import get_training_chat_template
        except ImportError:
            what = "which tokens of an answer are trained cannot be told from this chat template alone"
            remedy = f"pip install alloralib[trl], which has training versions of many templates; or {_MARKERS}"
            raise ModelError(what, where=where, remedy=remedy) from None
        try:
            template = get_training_chat_template(self.tokenizer)
        except ValueError:  # TRL does not know the template, so the rows decide whether the difference works
            return None
        usable = template is not None and self._is_usable(lambda messages: self._by_markers(messages, template))
        return template if usable else None


_PROBE: list[Message] = [
    {"role": role, "content": role} for role in ("user", "assistant", "user", "assistant", "user")
]  # fmt: skip
