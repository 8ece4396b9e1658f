"""`allora generate`: what the base says, and what the tuned model says, side by side."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from .arguments import RUN_FLAGS, add_run, check_least, check_run
from .quiet import quiet

HELP = "answer prompts with the base and the tuned model, side by side"
DESCRIPTION = """\
Answer prompts with the base and with the tuned model, side by side.

  allora generate runs/chat --prompt "What is the capital of France?"
  allora generate runs/chat --prompts prompts.txt --json > answers.jsonl

For a run of task chat a prompt is a user's turn, put through the model's chat template."""


def flags() -> list[str]:
    """All flags, for the nearest name to a misspelt one."""
    return [
        *("--prompt", "--prompts", "--system", "--max-new-tokens", "--temperature", "--seed", "--batch-size", "--json"),
        *RUN_FLAGS,
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    add_run(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt", metavar="TEXT", action="append", help="a prompt; may be given several times")
    source.add_argument("--prompts", metavar="FILE", help='a prompt per line, or .jsonl with {"prompt": ...} per line')
    parser.add_argument("--system", metavar="TEXT", help="the system's turn; task chat")
    parser.add_argument("--max-new-tokens", metavar="N", type=int, default=128, help="an answer is cut there [128]")
    parser.add_argument("--temperature", metavar="T", type=float, default=0.0, help="0 takes the most probable token [0]")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of the draws, with a temperature above 0 [0]")
    parser.add_argument("--batch-size", metavar="N", type=int, default=8, help="prompts at a time [8]")
    parser.add_argument("--json", action="store_true", help="a JSON object per prompt on standard output")


def run(arguments: argparse.Namespace) -> int:
    """Generate, and print both answers to every prompt."""
    from ..errors import ConfigError

    check_run(arguments)
    check_least(arguments, max_new_tokens=1, batch_size=1, seed=0, temperature=0)
    prompts = arguments.prompt or read_prompts(Path(arguments.prompts))
    quiet()
    from ..data.forms import LANGUAGE
    from ..evaluation.generation import generate_answers
    from .runs import open_run

    opened = open_run(arguments)
    if opened.kind not in LANGUAGE:
        raise ConfigError(f"a model for {opened.kind} says nothing", where=arguments.run, remedy="use allora evaluate")
    asked: list[Any] = list(prompts)
    if opened.kind == "chat":
        system = [] if arguments.system is None else [{"role": "system", "content": arguments.system}]
        asked = [[*system, {"role": "user", "content": prompt}] for prompt in prompts]
    elif arguments.system is not None:
        raise ConfigError(f"--system has no meaning for task {opened.kind}", remedy="leave it out, or give --task chat")
    model = opened.load()
    settings = {key: getattr(arguments, key) for key in ("max_new_tokens", "temperature", "seed", "batch_size")}
    with model.disable_adapter():
        base = generate_answers(model, opened.processor, asked, **settings)
    tuned = generate_answers(model, opened.processor, asked, **settings)
    for prompt, before, after in zip(prompts, base, tuned, strict=True):
        if arguments.json:
            print(json.dumps({"prompt": prompt, "base": before, "tuned": after}, ensure_ascii=False))
        else:
            print(f"prompt  {_indent(prompt)}\nbase    {_indent(before)}\ntuned   {_indent(after)}\n")
    return 0


def _indent(text: str) -> str:
    return text.strip().replace("\n", "\n        ")


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file.

    Raises:
        DataError: not there, not UTF-8, malformed, or empty.
    """
    from ..errors import DataError

    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        what = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise DataError(f"cannot be read: {what}", where=str(path), remedy="give a text file in UTF-8") from None
    found: list[str] = []
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
        found.append(line.rstrip("\r"))
    if not found:
        raise DataError("no prompts", where=str(path), remedy="write one per line")
    return found
