"""The kinds of task, and the columns that each needs. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, get_args

from ..errors import ConfigError

Kind = Literal["classification", "image-classification", "causal-lm", "chat", "multiple-choice"]
"""What a run trains for.

    classification          text (and a second text) -> class
    image-classification    image -> class
    causal-lm               text, or prompt -> completion
    chat                    messages; the assistant's answers are trained
    multiple-choice         prompt and choices -> the right choice, trained as a completion
"""

KINDS: tuple[Kind, ...] = get_args(Kind)
LANGUAGE: tuple[Kind, ...] = ("causal-lm", "chat", "multiple-choice")
"""The kinds that train a causal language model."""


@dataclass(frozen=True)
class Columns:
    """The column that holds each part of a row; None if there is no such part."""

    text: str | None = None
    text_pair: str | None = None
    label: str | None = None
    image: str | None = None
    prompt: str | None = None
    completion: str | None = None
    messages: str | None = None
    choices: str | None = None
    answer: str | None = None

    @classmethod
    def of(cls, kind: Kind, given: dict[str, str]) -> Columns:
        """The columns of a kind. A column that is not given has the name of its part.

        Args:
            given: part -> column, from the user.

        Raises:
            ConfigError: a part that this kind does not have, or half of a pair.
        """
        allowed = PARTS[kind]
        for part in given:
            if part not in allowed:
                flags = ", ".join(flag(p) for p in allowed)
                raise ConfigError(f"{flag(part)} has no meaning for task {kind}", remedy=f"leave it out; its columns: {flags}")
        if kind != "causal-lm":
            return cls(**{part: given.get(part, part) for part in allowed if part in given or part not in _OPTIONAL})
        if "text" in given and ("prompt" in given or "completion" in given):
            what = "--text-column trains on the whole text, --prompt-column and --completion-column only on the answer"
            raise ConfigError(what, remedy="choose one of the two")
        if ("prompt" in given) != ("completion" in given):
            raise ConfigError("--prompt-column and --completion-column go together", remedy="set both or neither")
        if "prompt" in given:
            return cls(prompt=given["prompt"], completion=given["completion"])
        return cls(text=given.get("text", "text"))

    def named(self) -> dict[str, str]:
        """part -> column, for the parts that exist."""
        return {f.name: name for f in fields(self) if (name := getattr(self, f.name)) is not None}


PARTS: dict[Kind, tuple[str, ...]] = {
    "classification": ("text", "text_pair", "label"),
    "image-classification": ("image", "label"),
    "causal-lm": ("text", "prompt", "completion"),
    "chat": ("messages",),
    "multiple-choice": ("prompt", "choices", "answer"),
}
_OPTIONAL = ("text_pair",)


def flag(part: str) -> str:
    """The setting that names the column of a part.

    >>> flag("text_pair")
    '--text-pair-column'
    """
    return "--" + part.replace("_", "-") + "-column"
