"""Run a command in this process, and look at what it wrote."""

import json
import re

from alloralib.cli.main import main


def contents(path) -> set[str]:
    return {str(p.relative_to(path)) for p in path.rglob("*")}


def refused(words: list[str], tmp_path, capsys, match: str) -> str:
    """The command ends with exit code 2 and a message with a remedy, without a traceback; nothing is written."""
    before = contents(tmp_path)
    capsys.readouterr()
    assert main(words) == 2
    message = capsys.readouterr().err
    assert re.search(match, message), message
    assert "Traceback" not in message
    assert "remedy" in message
    assert contents(tmp_path) == before
    return message


def json_of(capsys, words: list[str]) -> dict:
    """What the command prints with --json."""
    capsys.readouterr()
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)
