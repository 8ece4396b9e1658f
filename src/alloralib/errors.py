"""The errors of alloralib. Each says what failed, where, and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class AlloraError(ValueError):
    """An error that the caller can fix.

    Args:
        what: what is wrong, with the offending value.
        where: the file, row, flag or layer.
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
        """Pickled with all attributes, so that an error of another process arrives complete."""
        return _again, (type(self), self.__dict__ | {"args": self.args})


class ConfigError(AlloraError):
    """A setting that does not exist, is out of range, or contradicts another one."""


class LayerError(AlloraError):
    """A layer, or a combination of adapters on it, for which the rule is not defined or not tested."""


class MergeError(AlloraError):
    """An adapter that cannot be merged into the frozen weight, or a merged model that computes something else."""


class DataError(AlloraError):
    """A data set, or a row of it, that cannot be used."""


class ModelError(AlloraError):
    """A model that cannot be found or loaded, or does not fit the task."""


class CheckpointError(AlloraError):
    """A damaged checkpoint, or a state that cannot be saved without pickle."""


class TrainingError(AlloraError):
    """A run that cannot continue: a NaN or infinite loss, or a failed check before the first step."""


class Interrupted(AlloraError):
    """A run that a signal stopped, with a checkpoint to resume from.

    Args:
        signal: its number; the command line exits with 128 plus it.
    """

    def __init__(self, what: str, *, remedy: str, signal: int) -> None:
        super().__init__(what, remedy=remedy)
        self.signal = signal


class RecordError(AlloraError):
    """A file that is not a record of a run, or was written by another version."""


def _again(kind: type[AlloraError], state: dict[str, Any]) -> AlloraError:
    error = kind.__new__(kind, *state["args"])
    error.__dict__.update({name: value for name, value in state.items() if name != "args"})
    return error


def nearest(name: str, known: Iterable[str], *, most: int = 3) -> list[str]:
    """The known names closest in spelling to `name`, best first; empty if none is close."""
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
