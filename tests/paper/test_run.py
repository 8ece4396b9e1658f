"""A study continues where it stopped, gives the same record twice, and refuses a record that does not fit."""

import json
from dataclasses import replace

import pytest

from alloralib.errors import ConfigError, RecordError
from paper import run
from paper.catalogue import load
from paper.run import cells_of, read_record, run_study
from paper.study import Claim, Study, by_mean

from ..places import data_dir


class Counting:
    """A study of ten cells that counts those it computes, and can be interrupted at any of them."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.worked: list[int] = []
        self.stop_at = stop_at
        squares = by_mean(lambda cells, settings: [c.result["square"] for c in cells], above=5, over="numbers")
        self.study = Study(
            name="counting", claims=[Claim("mean", "nowhere", "the mean is large | really", "10", squares)],
            settings={"laptop": {"cells": 10, "offset": 0.1}, "paper": {"cells": 20, "offset": 0.1}},
            differs={"laptop": "smaller <than>", "paper": "nothing"},
            plan=lambda settings: [{"number": i} for i in range(settings["cells"])],
            work=self.work, draw=lambda cells, settings, path: path.write_bytes(b"\x89PNG" + bytes(len(cells))),
        )  # fmt: skip

    def work(self, key, settings, data):
        if key["number"] == self.stop_at:
            raise KeyboardInterrupt
        self.worked.append(key["number"])
        return {"square": (key["number"] + settings["offset"]) ** 2}


def test_a_study_interrupted_at_any_cell_continues(tmp_path) -> None:
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


def test_damaged_cells_are_computed_again(tmp_path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_study(Counting(5).study, output_dir=tmp_path)
    cells = sorted(p for p in (tmp_path / "counting.unfinished").iterdir() if p.name != "settings.json")
    cells[0].write_text('{"key": {"number"')
    cells[1].write_text('{"key": {"number": 99}, "result": {"square": 0}}')
    again = Counting()
    run_study(again.study, output_dir=tmp_path)
    assert len(again.worked) == 7


def test_a_finished_study_is_not_run_again_without_overwrite(tmp_path) -> None:
    run_study(Counting().study, output_dir=tmp_path)
    again = Counting()
    run_study(again.study, output_dir=tmp_path)
    assert again.worked == []
    run_study(again.study, output_dir=tmp_path, overwrite=True)
    assert len(again.worked) == 10


def test_other_settings_are_refused(tmp_path) -> None:
    run_study(Counting().study, output_dir=tmp_path / "finished")
    with pytest.raises(ConfigError, match=r"other settings.*offset 0.1 instead of 0.2"):
        run_study(Counting().study, output_dir=tmp_path / "finished", settings={"offset": 0.2})
    with pytest.raises(KeyboardInterrupt):
        run_study(Counting(3).study, output_dir=tmp_path / "stopped")
    with pytest.raises(ConfigError, match="unfinished run with other settings"):
        run_study(Counting().study, output_dir=tmp_path / "stopped", scale="paper")
    with pytest.raises(ConfigError, match="no setting 'ofset'"):
        run_study(Counting().study, output_dir=tmp_path, settings={"ofset": 1})


def test_verdicts_are_computed_from_the_cells_of_the_record(tmp_path) -> None:
    run_study(Counting().study, output_dir=tmp_path)
    path = tmp_path / "counting" / "record.json"
    record = json.loads(path.read_text())
    record["findings"][0]["verdict"] = "not confirmed"  # a record that was edited
    path.write_text(json.dumps(record))
    assert run_study(Counting().study, output_dir=tmp_path)["findings"][0]["verdict"] == "confirmed"
    assert read_record(path)["findings"][0]["verdict"] == "confirmed"


def test_a_record_is_rewritten_only_if_a_finding_changed(tmp_path) -> None:
    """Not for other words, nor for other versions than those it was made with."""
    run_study(Counting().study, output_dir=tmp_path)
    path = tmp_path / "counting" / "record.json"
    record = json.loads(path.read_text())
    record["versions"]["torch"], record["title"] = "2.1", "another title"
    text = json.dumps(record)
    path.write_text(text)
    assert run_study(Counting().study, output_dir=tmp_path)["versions"]["torch"] == "2.1"
    assert path.read_text() == text
    study = Counting().study
    stricter = by_mean(lambda cells, settings: [c.result["square"] for c in cells], above=500, over="numbers")
    run_study(replace(study, claims=[replace(study.claims[0], judge=stricter)]), output_dir=tmp_path)
    found = read_record(path)
    assert (found["findings"][0]["verdict"], found["versions"]["torch"]) == ("not confirmed", "2.1")


def test_other_data_than_the_records_are_refused(tmp_path) -> None:
    study = replace(Counting().study, needs=lambda settings: ("trec",))
    for place, text in (("a", "one"), ("b", "two")):
        (tmp_path / place / "trec").mkdir(parents=True)
        (tmp_path / place / "trec" / "train.csv").write_text(text)
    run_study(study, data_dir=tmp_path / "a", output_dir=tmp_path)
    assert run_study(study, output_dir=tmp_path)["data"]  # judged again without the data
    with pytest.raises(ConfigError, match="other data"):
        run_study(study, data_dir=tmp_path / "b", output_dir=tmp_path)


def test_the_number_of_processes_does_not_change_a_record(tmp_path) -> None:
    small = {"rows": 24, "rank": 2, "repeats": 1, "rates": [0.05, 0.5], "realisations": [1, 10, 300], "datasets": ["mnist"]}
    for jobs in (1, 2):
        run_study(load("fig1"), data_dir=data_dir(), output_dir=tmp_path / str(jobs), settings=small, jobs=jobs)
    assert (tmp_path / "1/fig1/record.json").read_bytes() == (tmp_path / "2/fig1/record.json").read_bytes()


def derived(source: Study) -> Study:
    """A study that judges another study's cells too, and whose second cell depends on its first."""
    return replace(
        source, name="derived", sources=("counting",), plan=lambda settings: [{"own": 0}],
        follow=lambda cells, settings: [{"own": 10 * cells[0].result["square"]}],
        work=lambda key, settings, data: {"square": key["own"] + 1.0},
    )  # fmt: skip


def test_a_study_of_another_studys_cells(tmp_path, monkeypatch) -> None:
    counting = Counting()
    monkeypatch.setattr(run, "load", lambda name: counting.study)
    study = derived(counting.study)
    record = run_study(study, output_dir=tmp_path, settings={"cells": 3})
    assert counting.worked == [0, 1, 2]  # the source was run, with the same settings
    assert [cell["result"]["square"] for cell in record["cells"]] == [1.0, 11.0]
    judged_by = cells_of(record, tmp_path)
    assert [cell.result["square"] for cell in judged_by] == pytest.approx([0.01, 1.21, 4.41, 1, 11])
    assert record["findings"][0]["ours"] == f"{sum(c.result['square'] for c in judged_by) / 5:.3g}"
    run_study(study, output_dir=tmp_path, settings={"cells": 3})
    assert counting.worked == [0, 1, 2]  # neither is run again


def test_a_changed_source_is_noticed(tmp_path, monkeypatch) -> None:
    counting = Counting()
    monkeypatch.setattr(run, "load", lambda name: counting.study)
    record = run_study(derived(counting.study), output_dir=tmp_path)
    path = tmp_path / "counting" / "record.json"
    path.write_text(path.read_text().replace("1.21", "1.22"))
    with pytest.raises(RecordError, match="made with another record of counting"):
        cells_of(record, tmp_path)
    with pytest.raises(ConfigError, match="other sources"):
        run_study(derived(counting.study), output_dir=tmp_path)


def test_files_that_are_no_records_are_refused(tmp_path) -> None:
    path = tmp_path / "record.json"
    for text in ("", "{", "[]", '{"format": 99, "cells": []}'):
        path.write_text(text)
        with pytest.raises(RecordError):
            read_record(path)
