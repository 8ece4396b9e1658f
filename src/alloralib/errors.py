"""The project's errors: each says what failed, where, and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class AlloraError(ValueError):
    """A mistake that the caller can mend.

    Args:
        what: what is wrong, with the offending value.
        where: the file, row, flag or layer it was found in.
        remedy: the next thing to do.

    The command line prints the message without a traceback and exits with code 2.
    """

    def __init__(self, what: str, *, where: str | None = None, remedy: str | None = None) -> None:
        self.what, self.where, self.remedy = what, where, remedy
        lines = [what if where is None else f"{where}: {what}"]
        if remedy is not None:
            lines.append(f"  remedy: {remedy}")
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[Any, ...]:
        """So that one raised in another process arrives whole."""
        return _again, (type(self), self.__dict__ | {"args": self.args})


class ConfigError(AlloraError):
    """A setting that does not exist, has a value it cannot have, or contradicts another."""


class LayerError(AlloraError):
    """A layer, or a combination of adapters on a layer, that the rule is not defined or not tested on."""


class MergeError(AlloraError):
    """An adapter that no matrix added to the frozen weight can stand for."""


class DataError(AlloraError):
    """A data set, or one of its rows, that cannot be trained on."""


class ModelError(AlloraError):
    """A model that is not there, is not a model, or does not fit the task."""


class CheckpointError(AlloraError):
    """A checkpoint that is damaged, or cannot be written without pickle."""


class TrainingError(AlloraError):
    """A run that cannot go on: a loss that is no number, a check before the first step that failed."""


class Interrupted(AlloraError):
    """A run that a signal ended early, with a checkpoint to go on from.

    Args:
        signal: its number; the command line exits with 128 plus it.
    """

    def __init__(self, what: str, *, remedy: str, signal: int) -> None:
        super().__init__(what, remedy=remedy)
        self.signal = signal


class RecordError(AlloraError):
    """A run's record that is not one, or belongs to a later version."""


def _again(kind: type[AlloraError], state: dict[str, Any]) -> AlloraError:
    error = kind.__new__(kind, *state["args"])
    error.__dict__.update({name: value for name, value in state.items() if name != "args"})
    return error


def nearest(name: str, known: Iterable[str], *, most: int = 3) -> list[str]:
    """The known names closest in spelling to `name`, best first; empty where none is close."""
    return difflib.get_close_matches(name, list(known), n=most, cutoff=0.6)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A remedy for a misspelt name: the nearest known names, or all of them where none is near.

    >>> did_you_mean("learning_rat", ["learning_rate", "r"])
    "did you mean 'learning_rate'?"
    >>> did_you_mean("zzz", ["b", "a"])
    'known names: a, b'
    """
    known = list(known)
    close = nearest(name, known)
    if close:
        return f"did you mean {' or '.join(map(repr, close))}?"
    return f"known names: {', '.join(sorted(known))}"
