"""A language model with a few examples in its prompt: the test rows of a k-shot evaluation.

The examples are training rows, the same ones for every test row. Exactly the tokens of the row's own answer that count without
examples count with them, so that both losses are of the same tokens.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import datasets

from ..data.chat import ChatEncoder, Encoded
from ..data.choices import questions
from ..data.conversations import Conversation, Message, conversations
from ..data.forms import Columns, Kind
from ..data.language import IGNORED
from ..data.table import Table
from ..errors import DataError, ModelError
from .choice import encode_choices, with_gap
from .limits import Limits

SHOTS = 4
"""Examples in a prompt."""


class NoShots(Exception):
    """There can be no examples in the prompts of these rows; says why."""


@dataclass(frozen=True)
class Shots:
    """Test rows with examples in their prompts.

    Attributes:
        rows: as `data.examples.build_examples` makes them: input_ids, labels and row.
        counts: (N,), the number of examples in the prompt of each row.
        prompts: multiple choice: the token ids of each prompt with its examples, up to the choice; else None.
        examples: row numbers of the examples in the training table, in the order in which they are shown.
    """

    rows: datasets.Dataset
    counts: list[int]
    prompts: list[list[int]] | None
    examples: list[int]


def make_shots(
    kind: Kind, train: Table, test: Table, columns: Columns, tokenizer: Any, plain: Any, *, max_length: int, limits: Limits,
    seed: int, count: int = SHOTS,
) -> Shots:  # fmt: skip
    """Put examples before the prompt of every test row.

    causal-lm, multiple-choice    each example is prompt, completion (the right choice) and end of text, then a blank line.
                                  Without the end of text the model would not know that an answer ends with it, which counts.
    chat                          the messages of each example, without its system text, are earlier turns of the conversation

    A row that would have more than `max_length` tokens has fewer examples: those in front are left out.

    Args:
        train, test: the examples are drawn from `train` by `seed`. Rows with a prompt, not plain text.
        plain: the test rows without examples, from `data.examples.build_examples` with the same `max_length`.
        max_length: tokens per row.
        limits: of the model.
        count: examples in a prompt; fewer if there are fewer training rows.

    Raises:
        NoShots: the chat template cannot show examples, no training row can be one, or no test row has room for one.
    """
    order = random.Random(seed).sample(range(len(train)), len(train))
    if kind == "chat":
        assert columns.messages is not None
        shots = _chat(train, test, columns.messages, tokenizer, plain, max_length, order, count)
    else:
        shots = _texts(kind, train, test, columns, tokenizer, plain, max_length, limits, order[:count])
    if count and not any(shots.counts):
        raise NoShots(f"no test row has room for an example within {max_length} tokens")
    return shots


def _texts(
    kind: Kind, train: Table, test: Table, columns: Columns, tokenizer: Any, plain: Any, max_length: int, limits: Limits,
    examples: list[int],
) -> Shots:  # fmt: skip
    blocks = [_block(text, tokenizer) for text in _written(kind, train.take(examples), columns)]
    front = _front(tokenizer)
    ids, labels = plain["input_ids"], plain["labels"]
    lengths, prompts = [len(row) for row in ids], None
    if kind == "multiple-choice":
        asked = questions(test, columns)
        prompts, choices = encode_choices(tokenizer, [q.prompt for q in asked], [q.choices for q in asked], limits)
        longest = [len(prompt) + max(map(len, options)) for prompt, options in zip(prompts, choices, strict=True)]
        lengths = list(map(max, lengths, longest))
    counts = [_fitting(blocks, max_length - length) for length in lengths]
    before = [list(chain(*blocks[len(blocks) - n :])) for n in counts]
    rows = [_with(more, row, own, front) for more, row, own in zip(before, ids, labels, strict=True)]
    if prompts is not None:
        prompts = [_with(more, prompt, prompt, front)[0] for more, prompt in zip(before, prompts, strict=True)]
    return Shots(_dataset(rows), counts, prompts, examples)


def _written(kind: Kind, table: Table, columns: Columns) -> list[str]:
    """The text of every row: its prompt with the completion, or with the right choice."""
    if kind == "multiple-choice":
        asked = questions(table, columns)
        return [with_gap(q.prompt, q.choices[q.answer]) for q in asked]
    assert columns.prompt is not None
    assert columns.completion is not None
    prompts = table.texts(columns.prompt, "prompt-column")
    return [p + c for p, c in zip(prompts, table.texts(columns.completion, "completion-column"), strict=True)]


def _block(text: str, tokenizer: Any) -> list[int]:
    """The tokens of an example and of the blank line after it, as they are where more text follows."""

    def tokens(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    end = tokenizer.eos_token or ""
    text = (text if text.endswith(end) else text + end) + "\n\n"
    followed, more = tokens(text + "A"), tokens("A")
    kept = len(followed) - len(more)
    return followed[:kept] if followed[kept:] == more else tokens(text)


def _front(tokenizer: Any) -> list[int]:
    """The tokens that the tokenizer puts in front of every text."""
    whole, bare = tokenizer("A")["input_ids"], tokenizer("A", add_special_tokens=False)["input_ids"]
    starts = (i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
    return whole[: next(starts, 0)]


def _with(before: list[int], ids: list[int], labels: list[int], front: list[int]) -> Encoded:
    """A row with more tokens before its own, but behind those that the tokenizer puts in front."""
    at = len(front) if ids[: len(front)] == front else 0
    labels = [IGNORED, *labels[1:]]  # without examples nothing comes before the first token, so it does not count
    return [*ids[:at], *before, *ids[at:]], [*labels[:at], *[IGNORED] * len(before), *labels[at:]]


def _fitting(blocks: Sequence[list[int]], room: int) -> int:
    """The largest number of examples, counted from the last, that have at most `room` tokens."""
    return next((n for n in range(len(blocks), 0, -1) if sum(map(len, blocks[-n:])) <= room), 0)


def _dataset(rows: list[Encoded]) -> datasets.Dataset:
    ids, labels = [ids for ids, _ in rows], [labels for _, labels in rows]
    return datasets.Dataset.from_dict({"input_ids": ids, "labels": labels, "row": list(range(len(rows)))})


def _chat(
    train: Table, test: Table, column: str, tokenizer: Any, plain: Any, max_length: int, order: list[int], count: int
) -> Shots:
    turns = {row: _turns(talk) for row, talk in enumerate(conversations(train, column))}
    examples = [row for row in order if turns[row]][:count]
    if count and not examples:
        raise NoShots("no training row is a conversation of user and assistant in turn, without tools")
    encode = ChatEncoder(tokenizer)
    rows: list[Encoded] = []
    counts: list[int] = []
    for row, talk in enumerate(conversations(test, column)):
        ids, labels = list(plain[row]["input_ids"]), list(plain[row]["labels"])
        found, shown = (ids, [IGNORED, *labels[1:]]), 0
        _, asked = _system_and_turns(talk)
        possible = len(examples) if len(ids) < max_length and asked[0]["role"] == "user" else 0
        for n in range(possible, 0, -1):
            before = [message for example in examples[-n:] for message in turns[example]]
            more = _encoded_behind(before, talk, encode, labels, test.where(row))
            if len(more[0]) <= max_length:
                found, shown = more, n
                break
        rows.append(found)
        counts.append(shown)
    return Shots(_dataset(rows), counts, None, examples)


def _encoded_behind(before: list[Message], talk: Conversation, encode: ChatEncoder, labels: list[int], where: str) -> Encoded:
    """A conversation with earlier turns; only the tokens that count without them do.

    Raises:
        NoShots: the chat template refuses it, or writes the conversation otherwise.
    """
    system, asked = _system_and_turns(talk)
    untrained = frozenset(i + len(before) for i in talk.untrained)
    try:
        ids, found = encode(Conversation([*system, *before, *asked], talk.tools, untrained), where)
    except (DataError, ModelError) as error:
        raise NoShots(f"the chat template cannot show examples as earlier turns: {error.what}") from None
    scored = [label for label in labels[1:] if label != IGNORED]
    places = [i for i, label in enumerate(found) if label != IGNORED][-len(scored) :]
    if [ids[i] for i in places] != scored:
        raise NoShots("the chat template writes answers otherwise behind earlier turns")
    kept = set(places)
    return ids, [token if i in kept else IGNORED for i, token in enumerate(ids)]


def _turns(talk: Conversation) -> list[Message]:
    """The messages without the system text, if they are turns of user and assistant without tools; else none."""
    _, messages = _system_and_turns(talk)
    alternate = [message["role"] for message in messages] == ["user", "assistant"] * (len(messages) // 2)
    return messages if alternate and not any("tool_calls" in message for message in messages) else []


def _system_and_turns(talk: Conversation) -> tuple[list[Message], list[Message]]:
    first = 1 if talk.messages[0]["role"] in ("system", "developer") else 0
    return talk.messages[:first], talk.messages[first:]
