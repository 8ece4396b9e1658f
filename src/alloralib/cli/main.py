"""`allora`: parse the command line, run a verb, turn errors into exit codes. Imports nothing heavy.

Private API used here: `_option_string_actions`, where argparse keeps the flags of a parser.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from .. import __version__
from ..errors import AlloraError, ConfigError, Interrupted, did_you_mean
from ..training.memory import keep_freed_memory
from . import evaluate, export, generate, inspect, merge, predict, tasks, train
from .terminal import check_names, discard_output, escape_unprintable

VERBS = {
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "generate": generate,
    "merge": merge,
    "export": export,
    "inspect": inspect,
    "tasks": tasks,
}


_CLOSED = 128 + 13  # SIGPIPE, which Windows does not have


class Parser(argparse.ArgumentParser):
    """argparse whose errors are `ConfigError`s."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of exiting."""
        raise ConfigError(message, remedy=f"see {self.prog} --help")

    def flags(self) -> list[str]:
        """All long flags, to find the one nearest to a misspelled one."""
        return [flag for flag in self._option_string_actions if flag.startswith("--")]


def build_parser(chosen: str | None) -> tuple[Parser, dict[str, Parser]]:
    """The parser of the command and those of its verbs. Only the chosen verb has its flags: the others need not be loaded."""
    parser = Parser(
        prog="allora",
        description="Fine-tune with ALLoRA: LoRA with an adaptive learning rate (arXiv:2410.09692).",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"allora {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=Parser)
    for name, module in VERBS.items():
        verb = verbs.add_parser(
            name, help=module.HELP, description=module.DESCRIPTION, allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        if name == chosen:
            module.add_arguments(verb)
    return parser, verbs.choices


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb.

    Returns:
        the exit code: 0 for success, 2 for an `AlloraError`, 128 plus the signal's number for an interruption, and 141 (as of
        SIGPIPE) if what reads standard output closed it.
    """
    escape_unprintable()
    try:
        try:
            return _run(list(sys.argv[1:] if argv is None else argv))
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        discard_output()
        return _CLOSED


def _run(argv: list[str]) -> int:
    try:
        parser, verbs = build_parser(next((word for word in argv if not word.startswith("-")), None))
        if argv and not argv[0].startswith("-") and argv[0] not in VERBS:
            raise ConfigError(f"there is no verb {argv[0]!r}", remedy=did_you_mean(argv[0], VERBS))
        arguments, unknown = parser.parse_known_args(argv)
        if unknown:
            flag = unknown[0].partition("=")[0]
            remedy = did_you_mean(flag, verbs[arguments.verb].flags())
            raise ConfigError(f"unknown argument {flag!r}", where=arguments.verb, remedy=remedy)
        check_names(vars(arguments))
        keep_freed_memory()
        return VERBS[arguments.verb].run(arguments)
    except Interrupted as error:
        print(f"allora: {error}", file=sys.stderr)
        return 128 + error.signal
    except AlloraError as error:
        print(f"allora: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:  # its argument is the signal's number if training's own handler raised it
        print("allora: interrupted", file=sys.stderr)
        return 128 + (stop.args[0] if stop.args else signal.SIGINT)
