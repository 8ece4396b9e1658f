"""Conversations as tokens, and which of them are trained (the assistant's answers and what ends each).

Foreign API used here, beside transformers': `trl.chat_template_utils.get_training_chat_template` (TRL 1.15 and 1.16, optional).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from ..errors import DataError, ModelError
from .conversations import Conversation, conversations
from .table import Table
from .templates import ChatTemplate, Refused, shared_length

IGNORED = -100
"""The label that torch's cross-entropy ignores."""

_MARKERS = "give the tokenizer a template with {% generation %} markers around the assistant's answers"

Encoded = tuple[list[int], list[int]]  # token ids and labels, (T,) each


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
        self.tokenizer = tokenizer
        self.chat = ChatTemplate(tokenizer)
        """What renders the conversations."""
        if not tokenizer.is_fast:
            what = "a slow tokenizer, which does not report the position of each token in the text"
            raise ModelError(what, where=where, remedy="use a model with a fast tokenizer (tokenizer.json)")
        self._ends = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
        self.template: str | None = None
        """The template with markers; None where answers are found by difference."""
        own = tokenizer.get_chat_template()
        if "generation %}" in own and self._is_usable(self.chat, lambda text: self._by_markers(_PROBE, self.chat, text, "")):
            self.template = own
        elif not self._is_usable(self.chat, lambda text: self._by_difference(_PROBE, text, "")):
            self.template = self._template_of_trl(where)
            if self.template is not None:
                self.chat = ChatTemplate(tokenizer, self.template)

    def __call__(self, conversation: Conversation, where: str) -> Encoded:
        """Token ids and labels of a conversation, (T,) each. A label is the token's id where it is trained, else -100.

        Raises:
            DataError: the template refuses the conversation, or leaves out a part of it.
            ModelError: the template is not prefix-preserving on this conversation.
        """
        conversation = self.chat.adapted(conversation, where)
        try:
            text: str = self.chat.render(conversation)
            self.chat.check(conversation, text)
            if self.template is None:
                return self._by_difference(conversation, text, where)
            return self._by_markers(conversation, self.chat, text, where)
        except Refused as refused:
            raise self.chat.error(conversation, refused, where) from None

    def _by_markers(self, conversation: Conversation, chat: ChatTemplate, text: str, where: str) -> Encoded:
        marked = chat.render(conversation, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
        places = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        mask = marked["assistant_masks"]
        trained = {place for place, marks in zip(places, mask, strict=True) if marks}
        ends = chat.prompt_ends(conversation, text)
        ids, offsets = chat.tokens(text, ends)
        if ids != marked["input_ids"]:
            characters = {i for start, end in trained for i in range(start, end)}
            first = {place for n, place in enumerate(places) if mask[n] and not (n and mask[n - 1])}
            for start, end in first:  # a token that reaches from a prompt into its answer is two now; the second is trained
                characters -= set(range(start, max([start, *(place for place in ends if place < end)])))
            trained = {place for place in offsets if not characters.isdisjoint(range(*place))}
        labels = [i if place in trained else IGNORED for i, place in zip(ids, offsets, strict=True)]
        for turn in conversation.untrained:
            start, end = self._place(text, conversation, chat, turn, where)
            labels = [IGNORED if a < end and b > start else i for i, (a, b) in zip(labels, offsets, strict=True)]
        return ids, labels

    def _place(self, text: str, conversation: Conversation, chat: ChatTemplate, i: int, where: str) -> tuple[int, int]:
        """Where message i begins and ends in the text of a conversation."""
        before, after = (chat.render(conversation.up_to(n)) if n else "" for n in (i, i + 1))
        start, end = (shared_length(part, text) for part in (before, after))
        if conversation.messages[i]["content"].strip() not in text[start:end]:
            what = "the place of an answer of weight 0 cannot be told, because the chat template is not prefix-preserving"
            raise ModelError(what, where=where, remedy="give it the weight 1, or remove the row")
        return start, end

    def _by_difference(self, conversation: Conversation, text: str, where: str) -> Encoded:
        answers = [i for i, message in enumerate(conversation.messages) if message["role"] == "assistant"]
        prompts = {i: self._prompt(conversation, i, where) for i in answers if i not in conversation.untrained}
        ids, offsets = self.chat.tokens(text, self.chat.prompt_ends(conversation, text, prompts))
        labels = [IGNORED] * len(ids)
        for i, before in prompts.items():
            after: str = self.chat.render(conversation.up_to(i + 1))
            if not (after.startswith(before) and text.startswith(after)):
                what = "the chat template is not prefix-preserving: it renders earlier messages differently once more follow"
                raise ModelError(what, where=where, remedy=_MARKERS)
            span = [t for t, (start, end) in enumerate(offsets) if start < len(after) and end > len(before)]
            for t in self._until_the_end(ids, span):
                labels[t] = ids[t]
        return ids, labels

    def _prompt(self, conversation: Conversation, i: int, where: str) -> str:
        """The text before message i, an answer."""
        try:
            return self.chat.render(conversation.up_to(i), add_generation_prompt=True)
        except Refused:
            if i > 0:
                raise
            what = "the conversation begins with an answer, and the chat template cannot ask for one before any message"
            remedy = "put a message of the user first, or give the answer the weight 0"
            raise DataError(what, where=where, remedy=remedy) from None

    def _until_the_end(self, ids: list[int], span: list[int]) -> list[int]:
        """The span without white space after the token that ends the turn."""
        last = max((n for n, t in enumerate(span) if ids[t] in self._ends), default=None)
        if last is None or self.tokenizer.decode([ids[t] for t in span[last + 1 :]]).strip():
            return span
        return span[: last + 1]

    def _is_usable(self, chat: ChatTemplate, encode: Callable[[str], Encoded]) -> bool:
        """Whether a way to encode finds the answers of a small conversation, each to a token that ends a turn.

        The last answer is followed by a message, because some templates end a turn only where another begins.
        """
        try:
            _, labels = encode(chat.render(_PROBE))
        except (Refused, ModelError):
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
        if template is None:
            return None
        chat = ChatTemplate(self.tokenizer, template)
        return template if self._is_usable(chat, lambda text: self._by_markers(_PROBE, chat, text, "")) else None


def special_tokens_in_text(table: Table, column: str, tokenizer: Any) -> list[str]:
    """A warning if texts of conversations hold special tokens, such as `<|im_end|>`; else nothing.

    The tokenizer makes the token itself of such a text, in training as in answering.
    """
    tokens = re.compile("|".join(map(re.escape, tokenizer.all_special_tokens)) or "(?!)")
    found: list[tuple[int, str]] = []
    for row, conversation in enumerate(conversations(table, column)):
        match = next(filter(None, (tokens.search(message["content"]) for message in conversation.messages)), None)
        if match:
            found.append((row, match[0]))
    if not found:
        return []
    row, token = found[0]
    return [
        f"the text of {len(found):,} rows holds a special token, the first {token!r} in {table.where(row)}: the model reads it "
        "as the token itself; remove it from the text if it is not meant so"
    ]


_PROBE = Conversation([{"role": role, "content": role} for role in ("user", "assistant", "user", "assistant", "user")])
