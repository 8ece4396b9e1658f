"""`allora merge`: the base model and the adapter as one model. The same as `allora export --format merged`."""

from __future__ import annotations

import argparse

from . import export
from .arguments import add_json, add_run

HELP = "write base and adapter as one model"
DESCRIPTION = """\
Write the base model with W + BA in place of W, as safetensors that need no PEFT.

  allora merge runs/tweets --output-dir models/tweets

Weights have the dtype in which the base stores them, unless --dtype says another one; the sum is formed in float32 and
rounded once. The base must be the one that the adapter was trained on, by its content, not by its path.

The merged model is read back, and its logits are compared with the adapter's. Nothing is left behind if they differ, or
if the adapter does not change the base model."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    add_run(parser, "of the weights to write, float32, bfloat16 or float16 [as the base stores them]")
    parser.add_argument("--output-dir", metavar="DIR", required=True, help="the directory to write")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Merge, and print how the logits compare."""
    arguments.format, arguments.output, arguments.converter = "merged", arguments.output_dir, None
    return export.run(arguments)
