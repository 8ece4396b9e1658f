"""Terminals that cannot print every character, readers that go early, and systems without POSIX's modules."""

import ast
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import alloralib
from alloralib.cli.main import VERBS, main
from alloralib.cli.terminal import json_line, typed
from alloralib.errors import ConfigError
from alloralib.training.directory import RunDirectory
from alloralib.training.preflight import _peak_gib

from ..trained import jsonl
from .commands import refused

PROMPT = "“é” 🙂"


@pytest.fixture(params=["ascii", "cp1252", "utf-8"])
def printed(request, monkeypatch):
    """Run a command with standard output and error in an encoding; gives what it printed."""

    def run(*words: str, expected: int = 0) -> str:
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding=request.param) for _ in range(2))
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            try:
                code = main(list(words))
            except SystemExit as stop:  # --help
                code = stop.code
            out.flush()
            err.flush()
        message = err.buffer.getvalue().decode(request.param)
        assert code == expected, message
        assert "Traceback" not in message
        return out.buffer.getvalue().decode(request.param) if expected == 0 else message

    return run


def test_every_verb_prints_on_every_terminal(printed, trained, tmp_path, tiny_llama) -> None:
    run, classifier = str(trained("causal-lm")), str(trained("classification"))
    generate = ("generate", run, "--prompt", PROMPT, "--max-new-tokens", "3")
    assert printed(*generate).startswith("prompt  ")
    assert json.loads(printed(*generate, "--json"))["prompt"] == PROMPT
    rows = [{"text": f"{PROMPT} {i}", "label": "schön" if i % 2 else "日本"} for i in range(12)]
    train = (
        "train", "--task", "classification", "--model", tiny_llama, "--data", jsonl(tmp_path / "é.jsonl", rows),
        "--output-dir", str(tmp_path / "run"), "--max-steps", "1", "--batch-size", "4", "--r", "2",
    )  # fmt: skip
    assert "first row" in printed(*train, "--dry-run")
    assert json.loads(printed(*train, "--dry-run", "--json"))["data"]["rows"] == 11
    printed(*train, "--max-length", "x", expected=2)
    assert "no such file" in printed(*train[:6], str(tmp_path / "日本.csv"), *train[7:], expected=2)
    assert "accuracy" in printed("evaluate", classifier, "--rows", "2")
    assert "parameters" in printed("inspect", run)
    assert "emotion" in printed("tasks")
    for verb in VERBS:
        assert "usage: allora" in printed(verb, "--help")


def test_json_is_escaped_only_where_it_has_to_be(monkeypatch) -> None:
    for encoding, expected in (("ascii", '"\\u00e9"'), ("cp1252", '"é"'), ("utf-8", '"é"')):
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
        assert json_line("é") == expected


def test_arguments_of_another_locale_are_read_as_utf8() -> None:
    """With LC_ALL=C and without UTF-8 mode, Python gives the bytes of an argument as half characters."""
    half = PROMPT.encode().decode("ascii", "surrogateescape")
    assert typed(half) == typed(PROMPT) == PROMPT
    with pytest.raises(ConfigError, match="not UTF-8"):
        typed("caf\udce9")


def test_names_that_the_locale_cannot_spell_are_refused_before_anything_is_done(tmp_path, capsys) -> None:
    """tokenizers could not write there, and says so only at the end of a run."""
    half = str(tmp_path / "é").encode().decode("ascii", "surrogateescape")
    for words in (["train", "--task", "causal-lm", "--model", "x", "--data", "x", "--output-dir", half], ["inspect", half]):
        refused(words, tmp_path, capsys, r"--(output-dir|adapter): a name that the locale cannot spell[\s\S]*LC_ALL=C.UTF-8")


def test_a_reader_that_goes_early_is_no_error(monkeypatch, capsys) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", encoding="utf-8") as gone, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", gone)
        assert main(["tasks"]) == 141
        gone.write("the rest goes nowhere")
        gone.flush()
    assert capsys.readouterr().err == ""


def test_the_command_in_a_pipe() -> None:
    command = f"{sys.executable} -m alloralib.cli tasks | head -1; echo ${{PIPESTATUS[0]}}"
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUNBUFFERED": "1"}
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment, timeout=60, check=True)
    assert done.stdout.splitlines()[0].startswith("name")
    assert done.stdout.splitlines()[-1] in ("0", "141"), "0 if everything was written before head went"
    assert done.stderr == ""


def test_without_the_modules_of_posix(tmp_path, monkeypatch) -> None:
    for name in ("resource", "fcntl"):
        monkeypatch.setitem(sys.modules, name, None)
    assert 0 < _peak_gib() < 1000
    directory = RunDirectory(tmp_path / "run")
    with directory.open("task: x\n", resume=False):
        assert directory.settings() == "task: x\n"


POSIX = {"resource", "fcntl", "pwd", "grp", "termios", "tty", "pty", "posix", "syslog", "readline"}


def test_no_module_needs_those_to_be_imported() -> None:
    source = Path(alloralib.__file__).parent
    for path in source.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not POSIX & set(names), f"{path}:{node.lineno}"
