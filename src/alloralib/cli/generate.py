"""`allora generate`: the answers of the base model and of the tuned model to the same prompts."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from .arguments import add_json, add_run, check_minimum, open_chosen
from .terminal import json_line, typed

HELP = "answer prompts with the base and the tuned model"
DESCRIPTION = """\
Answer prompts with the base and with the tuned model.

  allora generate runs/chat --prompt "What is the capital of France?"
  allora generate runs/chat --prompts prompts.txt --json > answers.jsonl

For task chat a prompt is a message of the user, rendered by the model's chat template."""

_WIDTH = 8  # of the names in front of the texts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    add_run(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt", metavar="TEXT", action="append", help="a prompt; may be given several times")
    source.add_argument("--prompts", metavar="FILE", help='one prompt per line, or .jsonl with {"prompt": ...} on each line')
    parser.add_argument("--system", metavar="TEXT", help="the system message, for task chat")
    parser.add_argument("--max-new-tokens", metavar="N", type=int, default=128, help="longest answer, in tokens [128]")
    parser.add_argument("--temperature", metavar="T", type=float, default=0.0, help="0 takes the most probable token [0]")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of sampling, with a temperature above 0 [0]")
    parser.add_argument("--batch-size", metavar="N", type=int, default=8, help="prompts per batch [8]")
    add_json(parser, "print a JSON object per prompt on standard output")


def run(arguments: argparse.Namespace) -> int:
    """Generate, and print both answers to every prompt."""
    check_minimum(arguments, max_new_tokens=1, batch_size=1, seed=0, temperature=0)
    prompts = [typed(prompt) for prompt in arguments.prompt or ()] or read_prompts(Path(arguments.prompts))
    opened = open_chosen(arguments)
    settings = {key: getattr(arguments, key) for key in ("system", "max_new_tokens", "temperature", "seed", "batch_size")}
    settings["system"] = None if arguments.system is None else typed(arguments.system)
    base = opened.generate(prompts, base=True, **settings)
    tuned = opened.generate(prompts, **settings)
    for texts in zip(prompts, base, tuned, strict=True):
        answer = dict(zip(("prompt", "base", "tuned"), texts, strict=True))
        if arguments.json:
            print(json_line(answer))
        else:
            for name, text in answer.items():
                print(name.ljust(_WIDTH) + text.strip().replace("\n", "\n" + " " * _WIDTH))
            print()
    return 0


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file. Raises `DataError` if it cannot be read, has a malformed line, or no prompts."""
    from ..errors import DataError

    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        what = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise DataError(f"cannot be read: {what}", where=str(path), remedy="give a text file in UTF-8") from None
    prompts: list[str] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if path.suffix.lower() == ".jsonl":
            try:
                line = json.loads(line)["prompt"]
            except (ValueError, KeyError, TypeError):
                line = None
            if not isinstance(line, str) or not line:
                raise DataError("no prompt", where=f"{path}, line {number}", remedy='write {"prompt": "..."} on each line')
        prompts.append(line.rstrip("\r"))
    if not prompts:
        raise DataError("no prompts", where=str(path), remedy="write one per line")
    return prompts
