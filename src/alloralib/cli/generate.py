"""`allora generate`: the answers of the base model and of the tuned model to the same prompts."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from .arguments import add_json, add_run, check_minimum, open_chosen
from .terminal import json_line, typed

HELP = "answer prompts with the base and the tuned model"
DESCRIPTION = """\
Answer prompts with the base and with the tuned model.

  allora generate runs/chat --prompt "What is the capital of France?"
  allora generate runs/chat --prompts prompts.txt --json > answers.jsonl
  allora generate runs/chat --prompts conversations.jsonl

For task chat a prompt is a message of the user, rendered by the model's chat template. A line of a .jsonl file may also be
a conversation, as in the training data: {"messages": [...], "tools": [...], "system": "..."}."""

_WIDTH = 8  # of the names in front of the texts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    add_run(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt", metavar="TEXT", action="append", help="a prompt; may be given several times")
    source.add_argument(
        "--prompts", metavar="FILE", help='one prompt per line, or .jsonl with {"prompt": ...} or {"messages": ...}'
    )
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
    for prompt, *answers in zip(prompts, base, tuned, strict=True):
        said = dict(zip(("base", "tuned"), answers, strict=True))
        if arguments.json:
            print(json_line((prompt if isinstance(prompt, dict) else {"prompt": prompt}) | said))
        else:
            for name, text in ({"prompt": _shown(prompt)} | said).items():
                print(name.ljust(_WIDTH) + text.strip().replace("\n", "\n" + " " * _WIDTH))
            print()
    return 0


def _shown(prompt: str | dict[str, Any]) -> str:
    """A prompt as text: of a conversation, its last message."""
    if isinstance(prompt, str):
        return prompt
    messages = prompt.get("messages") or prompt.get("conversations") or prompt.get("prompt")
    last = messages[-1] if isinstance(messages, list) else messages
    return str(last.get("content", last.get("value", ""))) if isinstance(last, dict) else str(last)


def read_prompts(path: Path) -> list[str | dict[str, Any]]:
    """The prompts of a file: texts, or rows of conversations as `OpenRun.generate` takes them.

    Raises:
        DataError: it cannot be read, has a malformed line, or no prompts.
    """
    from ..errors import DataError

    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        what = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise DataError(f"cannot be read: {what}", where=str(path), remedy="give a text file in UTF-8") from None
    prompts: list[str | dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if path.suffix.lower() == ".jsonl":
            prompts.append(_prompt_of(line, f"{path}, line {number}"))
        else:
            prompts.append(line.rstrip("\r"))
    if not prompts:
        raise DataError("no prompts", where=str(path), remedy="write one per line")
    return prompts


def _prompt_of(line: str, where: str) -> str | dict[str, Any]:
    """The prompt on a line of JSON: a text, or the whole row if it holds more than that."""
    from ..data.conversations import read_prompt
    from ..errors import DataError

    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    known = ("prompt", "messages", "conversations")
    if not isinstance(row, dict) or not any(row.get(name) for name in known):
        remedy = 'write {"prompt": "..."} or {"messages": [...]} on each line'
        raise DataError("no prompt", where=where, remedy=remedy)
    if isinstance(row.get("prompt"), str) and not (row.get("tools") or row.get("system") or row.get("messages")):
        return row["prompt"]
    read_prompt(row, where)  # a malformed row is named by its line, before a model is loaded
    return row
