"""Arguments that several verbs share. Imports nothing heavy."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..data.forms import KINDS
from ..errors import ConfigError
from .quiet import quiet

if TYPE_CHECKING:
    from ..training.opened import OpenRun


def add_run(
    parser: argparse.ArgumentParser, dtype: str = "of the base model's weights, float32 or bfloat16 [the run's]"
) -> None:
    """Add RUN, and what replaces the base, task and dtype of its record.

    Args:
        dtype: what --dtype is for.
    """
    parser.add_argument("run", metavar="RUN", help="directory of a run (with record.json) or of a saved adapter")
    parser.add_argument(
        "--model", metavar="MODEL", help="where the base model is [the run's]; one with other content needs --allow-other-base"
    )
    parser.add_argument(
        "--allow-other-base", action="store_true", help="only warn if the base is not the one that the adapter was trained on"
    )
    parser.add_argument("--task", metavar="TASK", help=f"what the adapter was trained for [the run's]: {', '.join(KINDS)}")
    parser.add_argument("--dtype", metavar="DTYPE", help=dtype)


def open_chosen(arguments: argparse.Namespace) -> OpenRun:
    """Open the run that the arguments of `add_run` name, with other libraries silenced."""
    quiet()
    from ..training.open_run import open_run

    return open_run(
        arguments.run, model=arguments.model, task=arguments.task, dtype=arguments.dtype,
        allow_other_base=arguments.allow_other_base,
    )  # fmt: skip


def add_json(parser: argparse.ArgumentParser, about: str = "print the result as JSON on standard output") -> None:
    """Add --json."""
    parser.add_argument("--json", action="store_true", help=about)


def check_minimum(arguments: argparse.Namespace, **minimum: float) -> None:
    """Raise `ConfigError` for a number that is below its minimum or NaN. A flag that was not given is not checked."""
    for name, smallest in minimum.items():
        value = getattr(arguments, name)
        if value is not None and not value >= smallest:
            flag = "--" + name.replace("_", "-")
            raise ConfigError(f"{flag} {value} is too small", remedy=f"give at least {smallest}")
