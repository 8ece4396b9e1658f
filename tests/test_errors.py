"""What messages say: every flag in them is one that can be given."""

import ast
import re
from pathlib import Path

import pytest

import alloralib
from alloralib.cli.main import VERBS, build_parser
from alloralib.errors import DataError

SOURCE = Path(alloralib.__file__).parent
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*[a-z0-9]")
OTHER_COMMANDS = {  # flags in the text that are of pip, other commands and the command itself
    "--no-deps",
    "--version",
    "--help",
    *("--outfile", "--outtype", "--base"),  # of the converter of llama.cpp
    "--nproc-per-node",  # of torchrun
    "--max-lora-rank",  # of vLLM
    *("--revision", "--local-dir"),  # of hf download
}


def flags_of_the_verbs() -> set[str]:
    return {flag for verb in VERBS for flag in build_parser(verb)[1][verb].flags()}


def texts_with_flags(source: str) -> list[tuple[int, str]]:
    """Line and flag, for every flag in a text of the code that is no docstring."""
    tree = ast.parse(source)
    bodies = [node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)]
    docstrings = {id(body.body[0].value) for body in bodies if body.body and isinstance(body.body[0], ast.Expr)}
    found: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            found += [(node.lineno, flag) for flag in FLAG.findall(node.value)]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("column", "texts"):
            for given in node.args[1:]:  # `Table.column` and `texts` are given a flag without its dashes
                if isinstance(given, ast.Constant):
                    found.append((node.lineno, f"--{given.value}"))
    return found


def test_every_flag_in_a_message_exists() -> None:
    known = flags_of_the_verbs() | OTHER_COMMANDS
    wrong = [
        f"{path.relative_to(SOURCE)}:{line}: {flag}"
        for path in sorted(SOURCE.rglob("*.py"))
        for line, flag in texts_with_flags(path.read_text(encoding="utf-8"))
        if flag not in known
    ]
    assert not wrong, wrong


@pytest.mark.parametrize(
    "text",
    ['DataError("x", remedy="give --evaluation-rows")', 'f"see --evaluation-rows {x}"', 't.column(n, "evaluation-rows")'],
)
def test_a_flag_that_does_not_exist_is_noticed(text: str) -> None:
    assert [flag for _, flag in texts_with_flags(text)] == ["--evaluation-rows"]
    assert "--evaluation-rows" not in flags_of_the_verbs()
    assert str(DataError("what", remedy="the remedy")).endswith("remedy: the remedy")
