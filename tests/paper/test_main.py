"""The command line `python -m paper`: mistakes are explained, and nothing is written for them."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from paper.__main__ import main
from paper.catalogue import TITLES

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("words", "said"), [
    (["fig1"], "--data-dir"),
    (["fig1", "--data-dir", "no/such/place"], "no/such/place"),
    (["fig11"], "did you mean 'fig1'"),
    (["table6"], "--data-dir"),
    (["fig6", "--jobs", "0"], "give at least 1"),
    (["fig6", "--job", "1"], "did you mean '--jobs'"),
    (["fig6", "--against", "no/such/place"], "no/such/place"),
    ([], "exactly one of"),
    (["fig6", "--list"], "exactly one of"),
    (["--report", "page.pdf"], "use .html or .md"),
    (["fig1", "--scale", "huge"], "--help"),
])  # fmt: skip
def test_mistakes_are_explained(words, said, tmp_path, capsys) -> None:
    assert main([*words, "--output-dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "remedy: " in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_an_output_directory_that_is_a_file(tmp_path, capsys) -> None:
    (tmp_path / "file").write_text("mine")
    assert main(["fig6", "--output-dir", str(tmp_path / "file")]) == 2
    assert "not a directory" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


def test_an_empty_data_directory(tmp_path, capsys) -> None:
    (tmp_path / "data").mkdir()
    output = tmp_path / "records"
    assert main(["fig3", "--data-dir", str(tmp_path / "data"), "--output-dir", str(output)]) == 2
    assert "mnist/train-images-idx3-ubyte" in capsys.readouterr().err
    assert not output.exists()


def test_run_list_and_report(tmp_path, capsys) -> None:
    words = ["--output-dir", str(tmp_path)]
    assert main(["fig6", "--jobs", "1", *words]) == 0
    assert "confirmed" in capsys.readouterr().out
    assert (tmp_path / "fig6" / "fig6.png").read_bytes().startswith(b"\x89PNG")
    assert main(["--list", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(TITLES)
    assert any(line.startswith("fig6") and " record " in line for line in lines)
    page = tmp_path / "page.html"
    assert main(["--report", str(page), *words]) == 0
    assert page.read_text().count(">not run<") == len(TITLES) - 1


def test_a_comparison_with_other_records(tmp_path, capsys) -> None:
    for name in ("a", "b"):
        assert main(["fig6", "--jobs", "1", "--output-dir", str(tmp_path / name)]) == 0
    for file in ("record.json", "fig6.png"):  # the same, whatever the directory
        assert (tmp_path / "a/fig6" / file).read_bytes() == (tmp_path / "b/fig6" / file).read_bytes()
    words = ["fig6", "--output-dir", str(tmp_path / "a"), "--against", str(tmp_path / "b")]
    assert main(words) == 0
    assert "the same verdicts; 3 of 3 cells are equal" in capsys.readouterr().out
    path = tmp_path / "b/fig6/record.json"
    text = path.read_text()
    path.write_text(text.replace('"verdict": "confirmed"', '"verdict": "inconclusive"', 1))
    assert main(words) == 0
    assert "confirmed here, inconclusive there" in capsys.readouterr().out
    path.write_text(text.replace('"verdict": "confirmed"', '"verdict": "not confirmed"', 1))
    assert main(words) == 2
    assert "has the opposite verdict" in capsys.readouterr().err


def test_listing_imports_no_torch() -> None:
    code = "import sys; from paper.__main__ import main; main(['--list']); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


def test_the_lab_uses_no_private_name_of_the_library() -> None:
    """Only modules and names without a leading underscore."""
    for path in (ROOT / "paper").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("alloralib"):
                parts = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
                assert not [part for part in parts if part.startswith("_")], f"{path}: {ast.unparse(node)}"
