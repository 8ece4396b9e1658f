"""The tokens with which a tuned model ends its answers, found in what it was trained on."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..errors import ModelError
from .chat import ChatEncoder
from .conversations import Conversation
from .forms import Kind
from .templates import CALL, ChatTemplate, Refused

_ANSWER = "answer"


class Stops(NamedTuple):
    """What ends an answer.

    Attributes:
        tokens: the ids that end one, each alone.
        text: what ends an answer of the chat template where no single token does; empty otherwise.
    """

    tokens: list[int]
    text: str = ""


def chat_template(tokenizer: Any) -> ChatTemplate:
    """The template that conversations are trained with; the tokenizer's own where it could not be trained with.

    Raises:
        ModelError: the tokenizer has no chat template.
    """
    try:
        return ChatEncoder(tokenizer).chat
    except ModelError:
        return ChatTemplate(tokenizer)


def stops(tokenizer: Any, kind: Kind) -> Stops:
    """What ends an answer of a language model that was trained for `kind` with this tokenizer.

    Prompt and completion are trained up to the end-of-text token. The answers of a conversation are trained up to what the
    chat template writes after one: the first special token there, or else the only token there. An answer that calls a tool
    can have another end.
    """
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    if kind != "chat" or not tokenizer.chat_template:
        return Stops(end)
    chat = chat_template(tokenizer)
    special = set(tokenizer.all_special_ids)
    answer = {"role": "assistant", "content": _ANSWER}
    user = {"role": "user", "content": "user"}
    text, after = "", list[int]()
    for talk in ([user, answer], [user, answer, user]):  # some templates end a turn only where another begins
        text = _rendered(chat, Conversation(talk)).rpartition(_ANSWER)[2]
        text = text.partition("user")[0] if len(talk) > 2 else text
        after = _tokens(tokenizer, text)
        if after:
            break
    ended = [token for token in after if token in special][:1] or (after if len(after) == 1 else [])
    called = _tokens(tokenizer, _rendered(chat, chat.adapted(CALL.up_to(2), "")).rpartition("Paris")[2])[-1:]
    ends = [*end, *ended, *(token for token in called if token in special)]
    return Stops(sorted(set(ends)), "" if ended else text.strip() or text)


def _rendered(chat: ChatTemplate, conversation: Conversation) -> str:
    try:
        return str(chat.render(conversation))
    except Refused:
        return ""


def _tokens(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a text without those that are white space."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
    return [token for token in ids if tokenizer.decode([token]).strip()]
