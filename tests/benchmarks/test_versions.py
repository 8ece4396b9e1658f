"""Comparing two revisions: the export, the alternation and the table. Nothing is timed."""

import json

from benchmarks import page, versions


def case() -> dict:
    seconds = {"before": [1.0, 2.0, 4.0], "after": [0.9, 1.9, 4.4]}
    memory = {"before": {"kept": 200 * 2**20, "peak": 1}, "after": {"kept": 100 * 2**20, "peak": 1}}
    return {"what": "a step", "seconds": seconds, "memory": memory}


def test_the_export_holds_the_files_of_the_revision(tmp_path) -> None:
    tree = versions.export("HEAD", tmp_path)
    assert (tree / "benchmarks" / "versions.py").is_file()
    assert (tree / "src" / "alloralib" / "__init__.py").is_file()
    assert not (tree / ".git").exists()


def test_the_two_revisions_alternate_and_the_first_steps_do_not_count() -> None:
    asked: list[tuple[str, str]] = []

    class Fake:
        def __init__(self, which: str) -> None:
            self.which = which

        def ask(self, what: str):
            asked.append((self.which, what))
            return float(len(asked)) if what == "step" else {"kept": 1, "peak": 2}

    found = versions._alternate({"before": Fake("before"), "after": Fake("after")}, pairs=8)
    assert {which: len(values) for which, values in found["seconds"].items()} == {"before": 8, "after": 8}
    rounds = [tuple(which for which, _ in asked[k : k + 2]) for k in range(0, 20, 2)]
    assert set(rounds) == {("before", "after"), ("after", "before")}
    first_counted = 1 + 2 * versions.WARMUP
    assert min(found["seconds"]["before"][0], found["seconds"]["after"][0]) == first_counted
    assert asked[-2:] == [("before", "memory"), ("after", "memory")]


def test_the_summary_and_the_table_show_the_pairs() -> None:
    assert versions.summary(case()) == "after / before 0.950 (0.925 to 1.025); kept 200 and 100 MiB"
    record = {"before": "57b90bc", "after": "1416523", "pairs": 3, "cases": {"smollm2": case()}}
    lines = versions.table(record).splitlines()
    assert lines[0] == "Revision `1416523` against `57b90bc`, 3 pairs of steps."
    assert lines[-1] == "| a step | 2000 ms | 1900 ms | 0.950 (0.925 to 1.025) | 200 MiB | 100 MiB |"


def test_the_page_has_the_section_only_if_there_is_a_record(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr("benchmarks.measuring.RECORDS", tmp_path)
    assert page._versions() == ""
    record = {"before": "a", "after": "b", "pairs": 3, "cases": {"smollm2": case()}}
    (tmp_path / "avx2").mkdir()
    (tmp_path / "avx2" / "versions.json").write_text(
        json.dumps(record | {"machine": {}, "versions": {"alloralib": "0.0.1"}}), encoding="utf-8"
    )
    assert page._versions().startswith("## What the 0.2 rebuild changed\n\n**AVX2†**\n\nRevision `b` against `a`")
