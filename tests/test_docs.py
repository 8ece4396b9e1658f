"""Every page's links lead somewhere, every file and Python name that it mentions exists, and no page is an orphan."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    path for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "tests").rglob("*.md")] if path.is_file()
)
PATHS = re.compile(r"`((?:src|tests|benchmarks|examples|docs|paper)/[\w/.-]*\w)`")
NAMES = re.compile(r"`(alloralib(?:\.\w+)+)(?:\([^`]*\))?`")


def anchors(page: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", page, re.M):
        plain = re.sub(r"[^\w\- ]", "", re.sub(r"`|\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower())
        found.add(plain.replace(" ", "-"))
    return found


def broken_links(page: Path, root: Path) -> list[str]:
    """The links and mentioned files of a page that do not exist."""
    text = page.read_text(encoding="utf-8")
    mentioned = [] if page.name == "CHANGELOG.md" else PATHS.findall(text)  # which tells of files that are gone
    broken = [path for path in mentioned if not (root / path).exists() and "NAME" not in path]
    for link in re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", text):
        target, _, anchor = link.partition("#")
        file = page.parent / target if target else page
        if not file.exists() or (anchor and anchor not in anchors(file.read_text(encoding="utf-8"))):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_and_files_exist(page: Path) -> None:
    assert broken_links(page, ROOT) == []


def test_a_broken_link_is_found(tmp_path) -> None:
    (tmp_path / "other.md").write_text("# A heading, with `code`\n")
    page = tmp_path / "page.md"
    page.write_text(
        "# Top\n[a](other.md) [b](other.md#a-heading-with-code) [c](#top) [d](https://example.org/x) [e](missing.md) "
        "[f](other.md#no-such-heading) [g](#neither) `src/missing.py`\n"
    )
    assert broken_links(page, tmp_path) == ["src/missing.py", "missing.md", "other.md#no-such-heading", "#neither"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_python_names_exist(page: Path) -> None:
    if page.name == "CHANGELOG.md":  # which tells of names that are gone
        return
    for name in NAMES.findall(page.read_text(encoding="utf-8")):
        parts = name.split(".")
        for end in range(len(parts), 0, -1):
            try:
                found = importlib.import_module(".".join(parts[:end]))
            except ModuleNotFoundError:
                continue
            for part in parts[end:]:
                found = getattr(found, part)
            break


def test_every_page_is_linked() -> None:
    links = {
        (page.parent / link.partition("#")[0]).resolve()
        for page in PAGES
        for link in re.findall(r"\]\((?!https?:)([^)\s#]+)", page.read_text(encoding="utf-8"))
    }
    unlinked = [page.relative_to(ROOT).as_posix() for page in (ROOT / "docs").rglob("*.md") if page.resolve() not in links]
    assert unlinked == []
