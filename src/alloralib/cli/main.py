"""`allora`: one verb, one module. Nothing heavy is imported before a verb runs."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from .. import __version__
from ..errors import AlloraError, ConfigError, Interrupted, did_you_mean
from . import evaluate, export, generate, inspect, merge, tasks, train
from .memory import keep_freed_memory

VERBS = {
    "train": train,
    "evaluate": evaluate,
    "generate": generate,
    "merge": merge,
    "export": export,
    "inspect": inspect,
    "tasks": tasks,
}


class Parser(argparse.ArgumentParser):
    """argparse, with our kind of error: what, and the remedy; exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the command line, and where to look."""
        raise ConfigError(message, remedy=f"{self.prog} --help lists what there is")


def build_parser(chosen: str | None) -> Parser:
    """The command line, with the flags of the chosen verb only: the others' need not be loaded."""
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
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb.

    Returns:
        0 when it is done, 2 for a mistake that the message explains, 128 plus the signal's number when it was interrupted.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        parser = build_parser(next((word for word in argv if not word.startswith("-")), None))
        if argv and not argv[0].startswith("-") and argv[0] not in VERBS:
            raise ConfigError(f"there is no verb {argv[0]!r}", remedy=did_you_mean(argv[0], VERBS))
        arguments, unknown = parser.parse_known_args(argv)
        if unknown:
            verb = VERBS[arguments.verb]
            flag = unknown[0].partition("=")[0]
            raise ConfigError(f"unknown argument {flag!r}", where=arguments.verb, remedy=did_you_mean(flag, verb.flags()))
        keep_freed_memory()
        return VERBS[arguments.verb].run(arguments)
    except Interrupted as error:
        print(f"allora: {error}", file=sys.stderr)
        return 128 + error.signal
    except AlloraError as error:
        print(f"allora: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:  # from a run's own handler it comes with the signal's number
        print("allora: interrupted", file=sys.stderr)
        return 128 + (stop.args[0] if stop.args else signal.SIGINT)
