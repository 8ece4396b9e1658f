"""Every committed record is judged again from its cells, and the page is made from the records."""

import json
from pathlib import Path

import pytest

from paper.catalogue import TITLES, load
from paper.page import Entry, markdown_page
from paper.run import cells_of, findings_of, read_record, run_study

ROOT = Path(__file__).parents[3]
RECORDS = ROOT / "paper" / "records"
COMMITTED = sorted(RECORDS.glob("*/record.json"))


def test_there_is_a_record_of_every_study() -> None:
    assert {path.parent.name for path in COMMITTED} == set(TITLES)


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.parent.name)
def test_a_committed_record_is_that_of_the_code(path) -> None:
    """The same settings, the same keys, and the findings that the code makes of those cells."""
    record = read_record(path)
    study = load(record["study"])
    assert record["settings"] == json.loads(json.dumps(study.settings[record["scale"]]))
    cells = cells_of(record, RECORDS)
    keys = study.plan(record["settings"])
    if study.follow is not None:
        keys += study.follow(cells[: len(keys)], record["settings"])
    assert [cell["key"] for cell in record["cells"]] == json.loads(json.dumps(keys))
    assert findings_of(study, cells, record["settings"]) == record["findings"]
    assert [claim["name"] for claim in record["claims"]] == [claim.name for claim in study.claims]
    assert [claim["by_paper"] for claim in record["claims"]] == [claim.by_paper for claim in study.claims]
    assert (path.parent / f"{study.name}.png").stat().st_size < 200_000


@pytest.mark.parametrize("name", ["fig3", "table2", "fair"])
def test_the_runner_judges_a_finished_record_without_running_anything(name, tmp_path, monkeypatch) -> None:
    """Alone, from another study's cells, and with cells that depend on the first ones; without data."""
    for needed in (name, *load(name).sources):
        (tmp_path / needed).mkdir()
        (tmp_path / needed / "record.json").write_bytes((RECORDS / needed / "record.json").read_bytes())
    monkeypatch.setattr("paper.run.work_cells", None)
    assert run_study(load(name), output_dir=tmp_path) == read_record(RECORDS / name / "record.json")
    assert (tmp_path / name / "record.json").read_bytes() == (RECORDS / name / "record.json").read_bytes()
    assert (tmp_path / name / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_docs_page_is_made_from_the_committed_records(monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    page = Path("docs/paper.md")
    entries = [Entry(load(name), read_record(RECORDS / name / "record.json")) for name in TITLES]
    made = markdown_page(entries, Path("paper/records"), page.parent)
    assert page.read_text() == made, "run `python -m paper --report docs/paper.md`"
