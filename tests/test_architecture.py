"""The library's files import each other without a cycle, and a test shows that this one can fail."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src"
LINES_OF_A_FILE = 350


def modules_of(source: Path) -> dict[str, Path]:
    """Every module below a directory by its dotted name; a package by its own name."""
    names = {}
    for path in sorted(source.rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def imports_of(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """The known modules that a module imports, at the top or within a function; not those for type checkers only."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()
    for node in _run_time(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found.update(f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base for alias in node.names)
    return {module for module in found if module in known and module != name}


def _run_time(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield from _run_time(other)
        else:
            yield from _run_time(child)


def cycle_in(graph: dict[str, set[str]]) -> list[str] | None:
    """Modules that import each other in a circle, the first one again at the end; None where there is no circle."""
    done: set[str] = set()

    def walk(module: str, path: list[str]) -> list[str] | None:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return None
        for other in sorted(graph[module]):
            if circle := walk(other, [*path, module]):
                return circle
        done.add(module)
        return None

    return next((circle for module in graph if (circle := walk(module, []))), None)


def graph_of(source: Path) -> dict[str, set[str]]:
    known = modules_of(source)
    return {name: imports_of(name, path, known) for name, path in known.items()}


def test_no_import_cycle() -> None:
    graph = graph_of(SOURCE)
    assert len(graph) > 50
    assert graph["alloralib.ops.lowrank"] >= {"alloralib.ops.scale"}
    assert (circle := cycle_in(graph)) is None, " -> ".join(circle)


@pytest.mark.parametrize(
    "second",
    [
        "from .a import x",
        "def f():\n    from . import a",
        "import pkg.a",
        "class C:\n    def f(self):\n        from pkg.a import x",
    ],
)
def test_a_cycle_is_found(tmp_path, second: str) -> None:
    package = tmp_path / "pkg"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text("from . import b\nx = 1\n")
    (package / "b.py").write_text(second)
    assert cycle_in(graph_of(tmp_path)) == ["pkg.a", "pkg.b", "pkg.a"]


def test_an_import_for_type_checkers_is_no_cycle(tmp_path) -> None:
    package = tmp_path / "pkg"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text("from . import b\n")
    (package / "b.py").write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from . import a\n")
    assert cycle_in(graph_of(tmp_path)) is None


def test_files_are_of_a_size_to_read() -> None:
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in modules_of(SOURCE).items()}
    assert {name: n for name, n in lines.items() if n > LINES_OF_A_FILE} == {}
