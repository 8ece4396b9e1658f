"""`allora export`: an adapter for other tools, each form proven before it appears."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from .arguments import RUN_FLAGS, add_run, check_run
from .quiet import quiet

HELP = "write an adapter for other tools: peft, merged, gguf"
DESCRIPTION = """\
Write an adapter for other tools.

  allora export runs/chat --format peft   --output adapters/chat       PEFT's own files, and nothing else of the run
  allora export runs/chat --format merged --output models/chat         base + BA as one model
  allora export runs/chat --format gguf   --output chat-lora.gguf      for llama.cpp; needs its convert_lora_to_gguf.py

What is written is read back and its logits compared with the trained adapter's before it appears; it is refused when
they differ, or when the adapter changes nothing."""

FORMATS = ("peft", "merged", "gguf")


def flags() -> list[str]:
    """All flags, for the nearest name to a misspelt one."""
    return ["--format", "--output", "--converter", "--json", *RUN_FLAGS]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    add_run(parser)
    parser.add_argument("--format", metavar="FORMAT", required=True, help=", ".join(FORMATS))
    parser.add_argument("--output", metavar="PATH", required=True, help="the directory (gguf: the file) to make")
    parser.add_argument(
        "--converter", metavar="PATH", help="llama.cpp's convert_lora_to_gguf.py [$ALLORA_LORA_TO_GGUF, or on PATH]; gguf only"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON on standard output")


def run(arguments: argparse.Namespace) -> int:
    """Export, and say what was compared."""
    from ..errors import ConfigError, MergeError, did_you_mean

    check_run(arguments)
    if arguments.format not in FORMATS:
        raise ConfigError(f"unknown --format {arguments.format!r}", remedy=did_you_mean(arguments.format, FORMATS))
    if arguments.converter is not None and arguments.format != "gguf":
        raise ConfigError("--converter is for --format gguf", remedy="leave it out")
    quiet()
    from ..export.gguf import export_gguf, find_converter
    from ..export.merged import export_merged
    from ..export.peft import export_peft
    from ..export.proof import check_mergeable
    from .runs import open_run, proof_inputs

    converter = find_converter(arguments.converter) if arguments.format == "gguf" else None
    opened = open_run(arguments)
    check_mergeable(opened.directory)
    if arguments.format == "merged" and opened.is_quantized():
        raise MergeError(
            "the base is quantized, and a merged model would lose most of what was learnt in its rounding",
            where=opened.base,
            remedy="keep the adapter (--format peft), or merge into the model before it was quantized: --model DIR",
        )
    output = Path(arguments.output)
    inputs, source = proof_inputs(opened)
    if converter is not None:
        proof = export_gguf(
            opened.directory, output, load_base=opened.load_base, inputs=inputs, base=Path(opened.base), converter=converter
        )
    else:
        make = export_merged if arguments.format == "merged" else export_peft
        proof = make(opened.directory, output, load_base=opened.load_base, inputs=inputs, tokenizer=opened.processor)
    if arguments.json:
        found = {"output": str(output), "format": arguments.format, "compared_on": source}
        print(json.dumps(found | proof.__dict__))
    else:
        print(
            f"{output}: read back, and its logits are the trained adapter's on {source} "
            f"(largest difference {proof.difference:.2g}, allowed {proof.tolerance:.2g}; "
            f"the adapter itself moves logits by up to {proof.change:.3g})"
        )
    return 0
