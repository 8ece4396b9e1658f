"""`allora export`: write an adapter for other tools."""

from __future__ import annotations

import argparse
import json

from .arguments import add_json, add_run, open_chosen

HELP = "write an adapter for other tools: peft, merged, gguf"
DESCRIPTION = """\
Write an adapter for other tools.

  allora export runs/chat --format peft   --output adapters/chat       the files of the adapter, without the rest of the run
  allora export runs/chat --format merged --output models/chat         base + BA as one model
  allora export runs/chat --format gguf   --output chat-lora.gguf      for llama.cpp; needs its convert_lora_to_gguf.py

What was written is read back, and its logits are compared with the adapter's. Nothing is left behind if they differ, or
if the adapter does not change the base model."""

FORMATS = ("peft", "merged", "gguf")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    add_run(parser, "of the weights to write with --format merged [as the base stores them]; else of the base [the run's]")
    parser.add_argument("--format", metavar="FORMAT", required=True, help=", ".join(FORMATS))
    parser.add_argument("--output", metavar="PATH", required=True, help="the directory (gguf: the file) to write")
    parser.add_argument(
        "--converter", metavar="PATH", help="llama.cpp's convert_lora_to_gguf.py, for gguf [$ALLORA_LORA_TO_GGUF, or on PATH]"
    )
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Export, and print how the logits compare."""
    from ..errors import ConfigError, did_you_mean

    if arguments.format not in FORMATS:
        raise ConfigError(f"unknown --format {arguments.format!r}", remedy=did_you_mean(arguments.format, FORMATS))
    if arguments.converter is not None and arguments.format != "gguf":
        raise ConfigError("--converter is for --format gguf", remedy="leave it out")
    dtype = None
    if arguments.format == "merged":
        dtype, arguments.dtype = arguments.dtype, None
    opened = open_chosen(arguments)
    proof, source = opened.export(arguments.output, arguments.format, converter=arguments.converter, dtype=dtype)
    if arguments.json:
        print(json.dumps({"output": arguments.output, "format": arguments.format, "compared_on": source} | proof.__dict__))
    else:
        print(
            f"{arguments.output}: read back; its logits equal the trained adapter's on {source} "
            f"(largest difference {proof.difference:.2g}, allowed {proof.tolerance:.2g}; "
            f"the adapter changes logits by up to {proof.change:.3g})"
        )
    return 0
