"""Conversations: their formats, and the tokens of them that are trained (the assistant's answers and how each ends)."""

from __future__ import annotations

import json
from typing import Any

from ..errors import DataError, ModelError, did_you_mean
from .readers import refuse_half_characters
from .table import Table

IGNORED = -100  # the label that torch's cross-entropy leaves out

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "tool": "tool",
}
"""Roles as data sets write them, and as chat templates know them."""

Message = dict[str, Any]


def conversations(table: Table, column: str) -> list[list[Message]]:
    """The conversation of every row as OpenAI writes it: messages with role and content.

    Read are lists of {"role", "content"} (OpenAI) and of {"from", "value"} (ShareGPT), in a CSV cell as JSON; a text content
    may be a list of text parts. Where the default column `messages` is missing, ShareGPT's `conversations` is taken.

    Raises:
        DataError: not a conversation, an unknown role, or no answer of an assistant to learn from.
    """
    if column == "messages" and column not in table.columns and "conversations" in table.columns:
        column = "conversations"
    cells = table.column(column, "messages-column")
    return [_conversation(cell, table.where(row)) for row, cell in enumerate(cells)]


def _conversation(cell: Any, where: str) -> list[Message]:
    from trl import maybe_convert_to_chatml  # pyright: ignore[reportPrivateImportUsage] (its lazy exports)

    form = 'write [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'
    if isinstance(cell, str):
        text = cell
        try:
            cell = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"the conversation is not JSON: {error}", where=where, remedy=form) from None
        refuse_half_characters(cell, text, where)
    if not isinstance(cell, list) or not all(isinstance(message, dict) for message in cell):
        raise DataError(f"a list of messages is needed, not {str(cell)[:60]!r}", where=where, remedy=form)
    if not cell:
        raise DataError("an empty conversation", where=where, remedy="remove the row, or give it messages")
    # a Parquet file gives every message every key, with None where there is nothing
    known = [{key: value for key, value in message.items() if value is not None} for message in cell]
    messages: list[Message] = maybe_convert_to_chatml({"messages": known})["messages"]
    checked = [_message(message, f"{where}, message {i}", form) for i, message in enumerate(messages, start=1)]
    if not any(message["role"] == "assistant" for message in checked):
        raise DataError(
            "no message of the assistant, so nothing to learn",
            where=where,
            remedy="remove the row; plain text is trained with --task causal-lm",
        )
    return checked


def _message(message: Message, where: str, form: str) -> Message:
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise DataError(f"unknown role {role!r}", where=where, remedy=did_you_mean(str(role), ROLES))
    content = message.get("content", "")
    if isinstance(content, list):
        if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
            raise DataError("a part of the content is not text", where=where, remedy="chat is trained on text only")
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise DataError(f"the content is not text but {str(content)[:60]!r}", where=where, remedy=form)
    if not content.strip() and ROLES[role] == "assistant" and not message.get("tool_calls"):
        raise DataError("the assistant says nothing", where=where, remedy="remove the row, or give the answer")
    return message | {"role": ROLES[role], "content": content}


class ChatEncoder:
    """Conversations to token ids and labels, by a tokenizer's chat template.

    Where TRL knows the template, or it has `{% generation %}` markers that hold the stop token, those say what is trained.
    Any other template is rendered up to each answer and up to its end; the difference is trained, to the token that ends
    the turn and without white space behind it. That needs a prefix-preserving template: what stands there does not change
    when the conversation goes on.

    Args:
        tokenizer: a fast tokenizer of transformers with a chat template.

    Raises:
        ModelError: no template, or a tokenizer without offsets.
    """

    def __init__(self, tokenizer: Any) -> None:
        from trl.chat_template_utils import get_training_chat_template, is_chat_template_stop_token_trained

        if not tokenizer.chat_template:
            raise ModelError(
                "the tokenizer has no chat template",
                where=tokenizer.name_or_path or None,
                remedy="take an instruction-tuned model, or --task causal-lm with --prompt-column and --completion-column",
            )
        if not tokenizer.is_fast:
            raise ModelError(
                "the tokenizer does not say where a token stands in the text",
                where=tokenizer.name_or_path or None,
                remedy="take a model with a fast tokenizer (tokenizer.json)",
            )
        self.tokenizer = tokenizer
        self.template: str | None = None  # with markers; None: by difference
        try:
            template = get_training_chat_template(tokenizer) or tokenizer.chat_template
            if is_chat_template_stop_token_trained(tokenizer, template):
                self.template = template
        except ValueError:  # TRL has no version of it with markers
            pass
        self._ends = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())

    def __call__(self, messages: list[Message], where: str) -> tuple[list[int], list[int]]:
        """Token ids and labels of a conversation: (T,) each; a label is the token's id where it is trained, else -100.

        Raises:
            DataError: the template refuses the conversation.
            ModelError: the template is not prefix-preserving.
        """
        from jinja2 import TemplateError

        try:
            if self.template is None:
                return self._by_difference(messages, where)
            encoded = self.tokenizer.apply_chat_template(
                messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, chat_template=self.template
            )
        except TemplateError as error:
            raise DataError(
                f"the chat template refuses it: {error}", where=where, remedy="mend the order of the roles, or remove the row"
            ) from None
        ids, mask = list(encoded["input_ids"]), encoded["assistant_masks"]
        return ids, [i if trained else IGNORED for i, trained in zip(ids, mask, strict=True)]

    def _by_difference(self, messages: list[Message], where: str) -> tuple[list[int], list[int]]:
        text = self._render(messages)
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = list(encoded["input_ids"]), encoded["offset_mapping"]
        labels = [IGNORED] * len(ids)
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self._render(messages[:i], answer_follows=True)
            after = self._render(messages[: i + 1])
            if not (after.startswith(before) and text.startswith(after)):
                raise ModelError(
                    "the chat template is not prefix-preserving: it writes what was said differently once more is said",
                    where=where,
                    remedy="give the tokenizer a template with {% generation %} markers around the assistant's answers",
                )
            # a token that begins before the answer and reaches into it counts, as it does with markers
            span = [t for t, (start, end) in enumerate(offsets) if start < len(after) and end > len(before)]
            for t in self._to_the_end(ids, span):
                labels[t] = ids[t]
        return ids, labels

    def _to_the_end(self, ids: list[int], span: list[int]) -> list[int]:
        """The span without the white space behind the token that ends the turn."""
        last = max((n for n, t in enumerate(span) if ids[t] in self._ends), default=None)
        if last is None or self.tokenizer.decode([ids[t] for t in span[last + 1 :]]).strip():
            return span
        return span[: last + 1]

    def _render(self, messages: list[Message], *, answer_follows: bool = False) -> str:
        return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer_follows)
