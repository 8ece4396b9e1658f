"""`allora merge`: base + BA as a model of its own. The same as `allora export --format merged`."""

from __future__ import annotations

import argparse

from . import export
from .arguments import RUN_FLAGS, add_run

HELP = "write base and adapter as one model"
DESCRIPTION = """\
Write the base with W + BA in place of W: safetensors that need no PEFT.

  allora merge runs/tweets --output-dir models/tweets

The model is read back and its logits compared with the trained adapter's before it appears; it is refused when they
differ, or when the adapter changes nothing."""


def flags() -> list[str]:
    """All flags, for the nearest name to a misspelt one."""
    return ["--output-dir", "--json", *RUN_FLAGS]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    add_run(parser)
    parser.add_argument("--json", action="store_true", help="print the result as JSON on standard output")
    parser.add_argument("--output-dir", metavar="DIR", required=True, help="the directory to make")


def run(arguments: argparse.Namespace) -> int:
    """Merge, and say what was compared."""
    arguments.format, arguments.output, arguments.converter = "merged", arguments.output_dir, None
    return export.run(arguments)
