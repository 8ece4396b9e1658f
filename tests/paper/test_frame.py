"""A study goes on where it stopped, gives the same record twice, and refuses what does not fit together."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from alloralib.reporting.study_page import html_page, markdown_page
from alloralib.studies import frame
from alloralib.studies.catalogue import QUICK, TITLES, load
from alloralib.studies.cells import work_cells
from alloralib.studies.frame import Cell, Claim, Study, cells_of, findings_of, judged, judged_range, read_record, run_study

from alloralib.cli.main import main
from alloralib.errors import ConfigError, RecordError, TrainingError

from ..places import data_dir


class Counting:
    """A study of ten cells that counts what it works on, and can be stopped at any of them."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.worked: list[int] = []
        self.stop_at = stop_at
        self.study = Study(
            name="counting", title="squares of numbers", claims=(Claim("mean", "nowhere", "the mean is large | really", "10"),),
            needs=lambda settings: (), settings={"laptop": {"cells": 10, "offset": 0.1}, "paper": {"cells": 20, "offset": 0.1}},
            differs={"laptop": "smaller <than>", "paper": "nothing"},
            plan=lambda settings: [{"number": i} for i in range(settings["cells"])],
            work=self.work, judge=self.judge, draw=lambda record, path: path.write_bytes(b"\x89PNG" + bytes(len(record))),
        )  # fmt: skip

    def work(self, key, settings, data):
        if key["number"] == self.stop_at:
            raise KeyboardInterrupt
        self.worked.append(key["number"])
        return {"square": (key["number"] + settings["offset"]) ** 2}

    def judge(self, cells, settings):
        return [judged("mean", [c.result["square"] for c in cells], above=5, over="numbers")]


def test_interrupted_anywhere_it_goes_on(tmp_path) -> None:
    whole = run_study(Counting().study, output_dir=tmp_path / "whole")
    text = (tmp_path / "whole" / "counting" / "record.json").read_bytes()
    for stop in range(10):
        output = tmp_path / str(stop)
        first, second = Counting(stop), Counting()
        with pytest.raises(KeyboardInterrupt):
            run_study(first.study, output_dir=output)
        assert not (output / "counting").exists()  # nothing that looks finished
        assert run_study(second.study, output_dir=output) == whole
        assert first.worked + second.worked == list(range(10))
        assert (output / "counting" / "record.json").read_bytes() == text
        assert not (output / "counting.unfinished").exists()


def test_a_damaged_cell_is_worked_again(tmp_path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_study(Counting(5).study, output_dir=tmp_path)
    cells = sorted(p for p in (tmp_path / "counting.unfinished").iterdir() if p.name != "settings.json")
    cells[0].write_text('{"key": {"number"')
    cells[1].write_text('{"key": {"number": 99}, "result": {"square": 0}}')
    again = Counting()
    run_study(again.study, output_dir=tmp_path)
    assert len(again.worked) == 7


def test_what_is_finished_is_not_run_again_unless_told(tmp_path) -> None:
    run_study(Counting().study, output_dir=tmp_path)
    again = Counting()
    run_study(again.study, output_dir=tmp_path)
    assert again.worked == []
    run_study(again.study, output_dir=tmp_path, overwrite=True)
    assert len(again.worked) == 10


def test_other_settings_are_refused(tmp_path) -> None:
    run_study(Counting().study, output_dir=tmp_path / "finished")
    with pytest.raises(ConfigError, match=r"other settings.*offset 0.1 and not 0.2"):
        run_study(Counting().study, output_dir=tmp_path / "finished", settings={"offset": 0.2})
    with pytest.raises(KeyboardInterrupt):
        run_study(Counting(3).study, output_dir=tmp_path / "stopped")
    with pytest.raises(ConfigError, match="unfinished run with other settings"):
        run_study(Counting().study, output_dir=tmp_path / "stopped", scale="paper")
    with pytest.raises(ConfigError, match="no setting 'ofset'"):
        run_study(Counting().study, output_dir=tmp_path, settings={"ofset": 1})


def test_verdicts_are_made_from_the_cells_of_the_record(tmp_path) -> None:
    run_study(Counting().study, output_dir=tmp_path)
    path = tmp_path / "counting" / "record.json"
    record = json.loads(path.read_text())
    record["findings"][0]["verdict"] = "not confirmed"  # a record someone touched
    path.write_text(json.dumps(record))
    assert run_study(Counting().study, output_dir=tmp_path)["findings"][0]["verdict"] == "confirmed"


def test_processes_do_not_change_a_record(tmp_path) -> None:
    small = {"rows": 24, "rank": 2, "repeats": 2, "rates": [0.05, 0.5], "realisations": [1, 10, 300], "datasets": ["digits"]}
    for jobs in (1, 2):
        run_study(load("fig1"), data_dir=data_dir(), output_dir=tmp_path / str(jobs), settings=small, jobs=jobs)
    assert (tmp_path / "1/fig1/record.json").read_bytes() == (tmp_path / "2/fig1/record.json").read_bytes()


def refuse(key):
    if key["number"] == 1:
        raise ConfigError("cell 1 is wrong", where="here", remedy="mend it")
    return {"value": key["number"]}


def die(key):
    os._exit(9)


def test_an_error_of_a_process_arrives_whole_and_the_rest_is_kept(tmp_path) -> None:
    keys = [{"number": i} for i in range(3)]
    with pytest.raises(ConfigError, match="here: cell 1 is wrong") as caught:
        work_cells(keys, refuse, tmp_path, jobs=2, tell=lambda line: None)
    assert (caught.value.where, caught.value.remedy) == ("here", "mend it")
    done = work_cells([keys[0], keys[2]], refuse, tmp_path, jobs=1, tell=lambda line: None)
    assert [cell.result["value"] for cell in done] == [0, 2]


def test_a_process_that_dies_is_explained(tmp_path) -> None:
    with pytest.raises(TrainingError, match="a process of the study died"):
        work_cells([{"number": i} for i in range(2)], die, tmp_path, jobs=2, tell=lambda line: None)


def derived(source: Study) -> Study:
    """A study of another's cells and of what they lead to."""
    return replace(
        source, name="derived", sources=("counting",), plan=lambda settings: [{"own": 0}],
        follow=lambda cells, settings: [{"own": 10 * cells[0].result["square"]}],
        work=lambda key, settings, data: {"square": key["own"] + 1.0},
    )  # fmt: skip


def test_a_study_of_anothers_cells(tmp_path, monkeypatch) -> None:
    counting = Counting()
    monkeypatch.setattr(frame, "load", lambda name: counting.study)
    study = derived(counting.study)
    record = run_study(study, output_dir=tmp_path, settings={"cells": 3})
    assert counting.worked == [0, 1, 2]  # the source was run, with the same settings
    assert [cell["result"]["square"] for cell in record["cells"]] == [1.0, 11.0]  # the second hangs on the first
    judged_by = frame.cells_of(record, tmp_path)
    assert [cell.result["square"] for cell in judged_by] == pytest.approx([0.01, 1.21, 4.41, 1, 11])
    assert record["findings"][0]["ours"] == f"{sum(c.result['square'] for c in judged_by) / 5:.3g}"
    run_study(study, output_dir=tmp_path, settings={"cells": 3})
    assert counting.worked == [0, 1, 2]  # neither is run again


def test_a_source_that_changed_is_noticed(tmp_path, monkeypatch) -> None:
    counting = Counting()
    monkeypatch.setattr(frame, "load", lambda name: counting.study)
    record = run_study(derived(counting.study), output_dir=tmp_path)
    path = tmp_path / "counting" / "record.json"
    path.write_text(path.read_text().replace("1.21", "1.22"))
    with pytest.raises(RecordError, match="made with another counting"):
        frame.cells_of(record, tmp_path)
    with pytest.raises(ConfigError, match="other sources"):
        run_study(derived(counting.study), output_dir=tmp_path)


def test_a_record_that_is_none(tmp_path) -> None:
    path = tmp_path / "record.json"
    for text in ("", "{", "[]", '{"format": 99, "cells": []}'):
        path.write_text(text)
        with pytest.raises(RecordError):
            read_record(path)


def test_findings() -> None:
    sure = judged("a", [1.0, 1.1, 0.9, 1.05], above=0, over="seeds")
    assert (sure.verdict, sure.spread, sure.rule) == ("confirmed", "95 % over 4 seeds", "above 0")
    mixed = judged_range("b", [-1.0, 2.0], above=0, over="sets")
    assert (mixed.verdict, mixed.low, mixed.high) == ("inconclusive", -1, 2)
    assert judged_range("c", [3.0], below=2, over="exact").verdict == "not confirmed"


def test_pages(tmp_path) -> None:
    record = run_study(Counting().study, output_dir=tmp_path)
    entries = [("counting", "squares", record), ("later", "not yet there", None)]
    page = html_page(entries, tmp_path)
    assert "data:image/png;base64," in page
    assert "src='http" not in page
    assert "smaller &lt;than&gt;" in page
    assert "not run" in page
    text = markdown_page(entries, tmp_path, tmp_path)
    assert "the mean is large \\| really" in text
    assert "](counting/counting.png)" in text
    assert "- later: not yet there" in text
    assert "1 claims of the paper: 1 confirmed" in text


def test_every_study_is_there_and_fits_its_name() -> None:
    for name in TITLES:
        study = load(name)
        assert (study.name, study.title) == (name, TITLES[name])
        assert set(study.settings) == set(study.differs) == {"laptop", "paper"}
        assert set(study.settings["laptop"]) == set(study.settings["paper"])
        keys = [json.dumps(key, sort_keys=True) for key in study.plan(study.settings["laptop"])]
        assert len(set(keys)) == len(keys)
    assert set(QUICK) <= set(TITLES)


@pytest.mark.parametrize(("words", "said"), [
    (["fig1"], "--data-dir"),
    (["fig1", "--data-dir", "no/such/place"], "no/such/place"),
    (["fig11"], "did you mean 'fig1'"),
    (["table6"], "--data-dir"),
    (["fig6", "--jobs", "0"], "give at least 1"),
    (["fig6", "--against", "no/such/place"], "no/such/place"),
    ([], "say one thing"),
    (["fig6", "--list"], "say one thing"),
    (["--report", "page.pdf"], "use .html or .md"),
    (["fig1", "--scale", "huge"], "--help"),
])  # fmt: skip
def test_mistakes_are_explained(words, said, tmp_path, capsys) -> None:
    assert main(["reproduce", *words, "--output-dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_an_output_directory_that_is_a_file(tmp_path, capsys) -> None:
    (tmp_path / "file").write_text("mine")
    assert main(["reproduce", "fig6", "--output-dir", str(tmp_path / "file")]) == 2
    assert "not a directory" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


def test_an_empty_data_directory(tmp_path, capsys) -> None:
    (tmp_path / "data").mkdir()
    output = tmp_path / "records"
    assert main(["reproduce", "fig3", "--data-dir", str(tmp_path / "data"), "--output-dir", str(output)]) == 2
    assert "mnist/train-images-idx3-ubyte" in capsys.readouterr().err
    assert not output.exists()


def test_the_command(tmp_path, capsys) -> None:
    words = ["--output-dir", str(tmp_path)]
    assert main(["reproduce", "fig6", *words]) == 0
    assert "confirmed" in capsys.readouterr().out
    assert (tmp_path / "fig6" / "fig6.png").read_bytes().startswith(b"\x89PNG")
    assert main(["reproduce", "--list", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(TITLES)
    assert any(line.startswith("fig6") and " record " in line for line in lines)
    page = tmp_path / "page.html"
    assert main(["reproduce", "--report", str(page), *words]) == 0
    assert page.read_text().count("not run") == len(TITLES)  # all but one, and their number


def test_against_the_records_of_others(tmp_path, capsys) -> None:
    for name in ("a", "b"):
        assert main(["reproduce", "fig6", "--output-dir", str(tmp_path / name)]) == 0
    words = ["reproduce", "fig6", "--output-dir", str(tmp_path / "a"), "--against", str(tmp_path / "b")]
    assert main(words) == 0
    assert "the same verdicts; 3 of 3 cells are equal" in capsys.readouterr().out
    path = tmp_path / "b/fig6/record.json"
    text = path.read_text()
    path.write_text(text.replace('"verdict": "confirmed"', '"verdict": "inconclusive"', 1))
    assert main(words) == 0
    assert "confirmed here, inconclusive there" in capsys.readouterr().out
    path.write_text(text.replace('"verdict": "confirmed"', '"verdict": "not confirmed"', 1))
    assert main(words) == 2
    assert "comes to the contrary" in capsys.readouterr().err


def test_same_record_whatever_the_directory(tmp_path) -> None:
    for name in ("a", "b"):
        assert main(["reproduce", "fig6", "--output-dir", str(tmp_path / name)]) == 0
    assert (tmp_path / "a/fig6/record.json").read_bytes() == (tmp_path / "b/fig6/record.json").read_bytes()
    assert (tmp_path / "a/fig6/fig6.png").read_bytes() == (tmp_path / "b/fig6/fig6.png").read_bytes()


RECORDS = Path(__file__).parents[2] / "studies" / "records"
COMMITTED = sorted(RECORDS.glob("*/record.json"))


def test_the_docs_page_is_made_from_the_committed_records(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(RECORDS.parents[1])
    page = Path("docs/paper.md")
    entries = [
        (name, title, read_record(path) if (path := RECORDS / name / "record.json").is_file() else None)
        for name, title in TITLES.items()
    ]
    assert page.read_text() == markdown_page(entries, Path("studies/records"), page.parent), (
        "run `allora reproduce --report docs/paper.md`"
    )


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.parent.name)
def test_committed_records_are_those_of_the_code(path) -> None:
    """Same settings, same keys, and findings that the code still makes of those cells."""
    record = read_record(path)
    study = load(record["study"])
    assert record["settings"] == json.loads(json.dumps(study.settings[record["scale"]]))
    keys = study.plan(record["settings"])
    if study.follow is not None:
        keys += study.follow([Cell(**c) for c in record["cells"][: len(keys)]], record["settings"])
    assert [cell["key"] for cell in record["cells"]] == json.loads(json.dumps(keys))
    findings = [vars(f) for f in findings_of(study, cells_of(record, RECORDS), record["settings"])]
    assert findings == record["findings"]
    assert record["differs"] == study.differs[record["scale"]]
    assert (path.parent / f"{study.name}.png").stat().st_size < 200_000
