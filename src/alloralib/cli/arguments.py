"""The arguments that say which adapter, shared by the verbs that take a RUN. Imports nothing heavy."""

from __future__ import annotations

import argparse

from ..data.forms import KINDS
from ..errors import ConfigError, did_you_mean

RUN_FLAGS = ["--model", "--task", "--dtype"]


def add_run(parser: argparse.ArgumentParser) -> None:
    """RUN, and what a run's record would say: base, task and dtype."""
    parser.add_argument("run", metavar="RUN", help="directory of a run (with record.json) or of a saved adapter")
    parser.add_argument("--model", metavar="MODEL", help="the base [the run's own]")
    parser.add_argument("--task", metavar="TASK", help=f"what the adapter is for [the run's own]: {', '.join(KINDS)}")
    parser.add_argument("--dtype", metavar="DTYPE", help="float32 or bfloat16, of the base's weights [the run's own]")


def check_run(arguments: argparse.Namespace) -> None:
    """Raise `ConfigError` for a task or dtype that does not exist, before anything heavy is imported."""
    for name, known in (("task", KINDS), ("dtype", ("float32", "bfloat16"))):
        value = getattr(arguments, name)
        if value is not None and value not in known:
            raise ConfigError(f"unknown --{name} {value!r}", remedy=did_you_mean(value, known))


def check_least(arguments: argparse.Namespace, **least: float) -> None:
    """Raise `ConfigError` where a number is smaller than it may be (NaN is); None is no number."""
    for name, smallest in least.items():
        value = getattr(arguments, name)
        if value is not None and not value >= smallest:
            flag = "--" + name.replace("_", "-")
            raise ConfigError(f"{flag} {value} is too small", remedy=f"give at least {smallest}")
