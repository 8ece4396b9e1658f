"""A tokenizer's chat template: the text of a conversation, what the template wants of it, and what it leaves out.

Templates differ in what they take: some have no system role, ignore tools, or need the arguments of a tool call as JSON text
where others need a mapping. What one takes is found by rendering small conversations with it, not by its name.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

from ..errors import DataError, ModelError
from .calls import decoded
from .conversations import Conversation, Message

_SENTINEL = "zqxsentinelzqx"
_ARGUMENTS = {"city": "Paris"}
_REASONING = ("reasoning_content", "thinking", "reasoning")


class Refused(Exception):
    """The template raises, or leaves out a part of a conversation."""


class Tokens(NamedTuple):
    """Token ids, and the place of each token in the text; the places are all 0 for a slow tokenizer."""

    ids: list[int]
    offsets: list[tuple[int, int]]


class ChatTemplate:
    """A chat template of a tokenizer.

    Args:
        tokenizer: of transformers. Its attribute `chat_date` (see `set_date`) is the day that the template is told.
        template: another template than the tokenizer's own.

    Raises:
        ModelError: the tokenizer has no chat template.
    """

    def __init__(self, tokenizer: Any, template: str | None = None) -> None:
        if not (template or tokenizer.chat_template):
            remedy = "use an instruction-tuned model, or --task causal-lm with --prompt-column and --completion-column"
            raise ModelError("the tokenizer has no chat template", where=tokenizer.name_or_path or None, remedy=remedy)
        self.tokenizer = tokenizer
        self._template = template

    def encode(self, conversation: Conversation, where: str, *, prompt: bool = False) -> Tokens:
        """The tokens of a conversation.

        Args:
            prompt: as a prompt for the answer that comes next, up to its start.

        Raises:
            DataError: the template refuses the conversation, or leaves out a part of it.
        """
        conversation = self.adapted(conversation, where)
        try:
            text: str = self.render(conversation)
            self.check(conversation, text)
            text = self.asked(conversation) if prompt else text
            return self.tokens(text, self.prompt_ends(conversation, text))
        except Refused as refused:
            raise self.error(conversation, refused, where) from None

    def asked(self, conversation: Conversation) -> str:
        """The text of an adapted conversation up to the start of the answer that comes next.

        It is the template's own prompt, without what an answer of the training data does not begin with: DeepSeek R1's
        template opens a `<think>` that it does not write into finished answers.

        Raises:
            Refused: the template raises.
        """
        prompt: str = self.render(conversation, add_generation_prompt=True)
        if not self._asks_more_than_it_writes:
            return prompt
        return self._shared(prompt, conversation)

    def _shared(self, prompt: str, conversation: Conversation) -> str:
        answered = self._renders(replace(conversation, messages=[*conversation.messages, {**_TALK[1], "content": _SENTINEL}]))
        shared = shared_length(prompt, answered or prompt)
        last = self._tokenize(prompt[:shared]).ids[-1:]
        if shared < shared_length(prompt, self._renders(conversation) or "") or not self._added.issuperset(last):
            return prompt  # what they share ends inside the messages, or inside a word
        return prompt[:shared]

    @cached_property
    def _added(self) -> set[int]:
        return {*self.tokenizer.all_special_ids, *self.tokenizer.get_added_vocab().values()}

    @cached_property
    def _asks_more_than_it_writes(self) -> bool:
        probe = Conversation(_TALK[:1])
        prompt = self._renders(probe, add_generation_prompt=True)
        return prompt is not None and self._shared(prompt, probe) != prompt

    def prompt_ends(self, conversation: Conversation, text: str, prompts: Mapping[int, str] | None = None) -> list[int]:
        """The places in the text of an adapted conversation where the prompts for its answers end.

        Args:
            prompts: the template's own prompts for answers, by their index, as far as they are known.
        """
        known = {} if prompts is None or self._asks_more_than_it_writes else prompts
        ends: list[int] = []
        for i, message in enumerate(conversation.messages):
            if message["role"] == "assistant":
                prompt = known[i] if i in known else self._asked_or_none(conversation.up_to(i))
                ends += [len(prompt)] if prompt is not None and text.startswith(prompt) else []
        return ends

    def tokens(self, text: str, prompt_ends: Sequence[int]) -> Tokens:
        """The tokens of a text in which each prompt has the tokens that it has alone.

        A tokenizer may split the end of a prompt in another way once the answer follows (GPT-2's does with two line ends).
        The model would then be asked with other tokens than it was trained with.
        """
        found, done = Tokens([], []), 0
        for end in [*prompt_ends, len(text)]:
            whole = self._tokenize(text[:end])
            if whole.ids[: len(found.ids)] != found.ids:
                more = self._tokenize_after(text[done:end])
                offsets = [(start + done, stop + done) for start, stop in more.offsets]
                whole = Tokens(found.ids + more.ids, found.offsets + offsets)
            found, done = whole, end
        return found

    def _asked_or_none(self, conversation: Conversation) -> str | None:
        try:
            return self.asked(conversation)
        except Refused:
            return None

    def _tokenize(self, text: str) -> Tokens:
        if not self.tokenizer.is_fast:
            ids = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
            return Tokens(ids, [(0, 0)] * len(ids))
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return Tokens(list(encoded["input_ids"]), list(encoded["offset_mapping"]))

    def _tokenize_after(self, text: str) -> Tokens:
        """The tokens of a text that follows another: a tokenizer may put a space in front of one that stands alone."""
        line, found = self._tokenize("\n"), self._tokenize("\n" + text)
        if found.ids[: len(line.ids)] != line.ids:
            return self._tokenize(text)
        return Tokens(found.ids[len(line.ids) :], [(start - 1, end - 1) for start, end in found.offsets[len(line.ids) :]])

    def adapted(self, conversation: Conversation, where: str) -> Conversation:
        """The conversation as this template takes it: role `developer`, and the arguments of tool calls.

        Raises:
            DataError: arguments that are no JSON object.
        """
        return replace(conversation, messages=[self._adapted(message, where) for message in conversation.messages])

    def _adapted(self, message: Message, where: str) -> Message:
        if message["role"] == "developer" and not self._knows_developer:
            message = message | {"role": "system"}
        if "tool_calls" not in message:
            return message
        calls: list[dict[str, Any]] = []
        for call in message["tool_calls"]:
            arguments = call["function"].get("arguments", {})
            if not self._writes_arguments:
                arguments = decoded(arguments, where)
            elif not isinstance(arguments, str):
                arguments = json.dumps(arguments, ensure_ascii=False)
            calls.append(call | {"function": call["function"] | {"arguments": arguments}})
        return message | {"tool_calls": calls}

    def render(self, conversation: Conversation, **settings: Any) -> Any:
        """What `apply_chat_template` makes of an adapted conversation: its text, or what else the settings ask for.

        Raises:
            Refused: the template raises.
        """
        settings = {"tokenize": False} | settings
        template = self._template or self.tokenizer.get_chat_template(tools=conversation.tools)
        day = getattr(self.tokenizer, "chat_date", None)
        if day is not None:
            if "strftime_now" not in template:
                settings["date_string"] = datetime.date.fromisoformat(day).strftime("%d %b %Y")
            template = dated(template, day)
        try:
            # a batch of one, because transformers takes no empty conversation alone
            made = self.tokenizer.apply_chat_template(
                [conversation.messages], tools=conversation.tools, chat_template=template, **settings
            )
        except Exception as error:  # a template is a program: it raises whatever its author did not foresee
            raise Refused(str(error) or type(error).__name__) from None
        return made[0] if isinstance(made, list) else {name: values[0] for name, values in made.items()}

    def check(self, conversation: Conversation, text: str) -> None:
        """Check that a text shows everything in an adapted conversation.

        Raises:
            Refused: it leaves out a message, a tool call, the reasoning of the last answer, or the tools.
        """
        for i, message in enumerate(conversation.messages):
            content = message["content"].strip()
            if content and content not in text and not self._shows(conversation, i, {"content": _SENTINEL}):
                raise Refused(f"it leaves out message {i + 1} (role {message['role']})")
            for call in message.get("tool_calls", ()):
                if not self._shows_calls or call["function"]["name"] not in text:
                    raise Refused(f"it leaves out the tool call of message {i + 1}")
        answers = [i for i, message in enumerate(conversation.messages) if message["role"] == "assistant"]
        if answers:  # templates drop the reasoning of earlier answers on purpose
            for name, reasoning in _reasoning(conversation.messages[answers[-1]]).items():
                if reasoning not in text:
                    raise Refused(f"it leaves out the {name} of message {answers[-1] + 1}")
        if conversation.tools and self.render(replace(conversation, tools=None)) == text:
            raise Refused("it does not show tools")

    def _shows(self, conversation: Conversation, index: int, changed: Message) -> bool:
        messages = list(conversation.messages)
        messages[index] = messages[index] | changed
        return _SENTINEL in self.render(replace(conversation, messages=messages))

    def error(self, conversation: Conversation, refused: Refused, where: str) -> DataError:
        """The error for a conversation that the template refuses, with the remedy for its cause."""
        what, remedy = str(refused), "correct the order of the roles, or remove the row"
        rest = [m for m in conversation.messages if m["role"] != "system"]
        if "leaves out" in what:
            remedy = "remove it from the row, or use a model whose chat template shows it"
        elif "does not show tools" in what:
            remedy = "remove the column 'tools', or use a model whose chat template takes tools"
        elif len(rest) < len(conversation.messages) and self._renders(replace(conversation, messages=rest)):
            what = f"{what} (it takes no system message here)"
            remedy = "leave out the system text (--system), or write it at the start of the user's first message"
        return DataError(f"the chat template refuses the conversation: {what}", where=where, remedy=remedy)

    def _renders(self, conversation: Conversation, **settings: Any) -> str | None:
        """The text of a conversation, None if the template raises."""
        try:
            return self.render(conversation, **settings)
        except Refused:
            return None

    @cached_property
    def _knows_developer(self) -> bool:
        """Whether the template treats the role `developer` in another way than one that it does not know."""
        texts = [self._renders(Conversation([{"role": role, "content": "a"}, *_TALK])) for role in ("developer", _SENTINEL)]
        developer, unknown = texts
        return developer is not None and developer != (unknown or "").replace(_SENTINEL, "developer")

    @cached_property
    def _shows_calls(self) -> bool:
        text = self._renders(self.adapted(CALL, ""))
        return text is None or "weather" in text

    @cached_property
    def _writes_arguments(self) -> bool:
        """Whether the template writes the arguments of a tool call as they are, so that they must be JSON text."""
        mapping, text = (self._renders(_calling(form)) for form in (_ARGUMENTS, json.dumps(_ARGUMENTS)))
        if mapping is not None and str(_ARGUMENTS) not in mapping:
            return False
        return text is not None and json.dumps(_ARGUMENTS) in text


_TALK: list[Message] = [{"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}]


def _calling(arguments: Any) -> Conversation:
    """A conversation with a tool call. Mistral's templates want ids of nine letters or digits."""
    function = {"name": "weather", "arguments": arguments}
    call = {"role": "assistant", "content": "", "tool_calls": [{"id": "call00001", "type": "function", "function": function}]}
    result = {"role": "tool", "content": "d", "name": "weather", "tool_call_id": "call00001"}
    return Conversation([{"role": "user", "content": "b"}, call, result, {"role": "assistant", "content": "c"}])


CALL = _calling(_ARGUMENTS)
"""A small conversation whose second message is a tool call."""


def _reasoning(message: Message) -> dict[str, str]:
    """The reasoning of an answer, by the name of the key or of the tag in the content that holds it."""
    found = {name: message[name] for name in _REASONING if isinstance(message.get(name), str)}
    thought, closed, _ = message["content"].partition("</think>")
    if closed:
        found["<think>"] = thought.rpartition("<think>")[2]
    return {name: text.strip() for name, text in found.items() if text.strip()}


def shared_length(one: str, other: str) -> int:
    """The number of characters that two texts begin with alike.

    >>> shared_length("answer", "another")
    2
    """
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


# the day


def reads_clock(tokenizer: Any) -> bool:
    """Whether the tokenizer's chat template asks for today's date."""
    return "strftime_now" in _all_templates(tokenizer)


def set_date(tokenizer: Any, day: str | None) -> None:
    """Set the day that the tokenizer's chat template is told instead of today; None for today.

    Args:
        day: as YYYY-MM-DD. It is kept in the tokenizer's attribute `chat_date`, which is not saved with it.
    """
    tokenizer.chat_date = day


def shows_date(tokenizer: Any) -> bool:
    """Whether a day that is set changes the tokenizer's chat template: it asks for today's date, or takes `date_string`."""
    return reads_clock(tokenizer) or "date_string" in _all_templates(tokenizer)


def _all_templates(tokenizer: Any) -> str:
    template = tokenizer.chat_template or ""
    return template if isinstance(template, str) else "\n".join(template.values())


def dated(template: str, day: str) -> str:
    """A chat template to which `strftime_now` tells the given day (YYYY-MM-DD), at midnight.

    It puts a macro of that name in front, because transformers takes no function from outside.
    """
    time = datetime.datetime.fromisoformat(day)
    codes = {code: time.strftime("%" + code) for code in "aAbBcdHIjmMpSUwWxXyYZ"}
    codes |= {"-" + code: codes[code].lstrip("0") or "0" for code in "dmHIMSj"} | {"e": f"{time.day:>2}"}
    told = "".join(f" | replace({'%' + code!r}, {value!r})" for code, value in codes.items())
    return "{% macro strftime_now(format) %}{{ format" + told + " }}{% endmacro %}\n" + template
