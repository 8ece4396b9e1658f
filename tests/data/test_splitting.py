"""Which rows are held out or drawn: every class in its share, rare ones in training, decided by the seed."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alloralib import RunConfig, open_run, train
from alloralib.data.forms import Columns
from alloralib.data.parts import load_parts
from alloralib.data.splitting import cut_classes, quotas, sample
from alloralib.data.table import Table
from alloralib.errors import DataError

TEXT = Columns.of("classification", {})


def of_classes(**counts: int) -> tuple[Table, list[str]]:
    classes = [name for name, count in counts.items() for _ in range(count)]
    return Table("t", "0", {"text": [f"t{i}" for i in range(len(classes))], "label": classes}), classes


def counted(table: Table) -> dict[str, int]:
    return dict(Counter(table.columns["label"]))


COUNTS = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 40), min_size=1).filter(lambda c: sum(c.values()) > 2)


@given(COUNTS, st.floats(0.01, 0.6), st.floats(0.01, 0.6), st.integers(0, 99))
def test_parts_are_a_partition_with_every_class_in_its_share(counts, test_share: float, validation_share: float, seed) -> None:
    table, classes = of_classes(**counts)
    train, test, validation = cut_classes(table, classes, [test_share, validation_share], seed)
    assert sorted(text for part in (train, test, validation) for text in part.columns["text"]) == sorted(table.columns["text"])
    assert min(len(train), len(test), len(validation)) > 0
    assert cut_classes(table, classes, [test_share, validation_share], seed) == [train, test, validation]
    if all(count > 2 for count in counts.values()):  # enough rows for one of each class in every part
        assert counted(train).keys() == counts.keys()
    spare = sum(count - 1 for count in counts.values())
    if round(test_share * len(table)) < spare - 1:
        assert cut_classes(table, classes, [test_share], seed)[1] == test, "the test rows do not depend on the validation rows"
        for name, count in counts.items():
            most = max(1, count - 1)
            assert abs(counted(test).get(name, 0) - min(most, test_share * count)) < 1 + len(counts) / 2


@given(COUNTS, st.data())
def test_quotas_add_up_and_keep_their_limits(counts: dict[str, int], data) -> None:
    total = data.draw(st.integers(0, sum(counts.values())))
    taken = quotas(counts, total, counts)
    assert sum(taken.values()) == total
    for name, count in counts.items():
        assert 0 <= taken[name] <= count
        assert abs(taken[name] - total * count / sum(counts.values())) < 1


def test_a_share_has_the_classes_of_all_rows() -> None:
    table, classes = of_classes(a=70, b=25, c=5)
    train, test = cut_classes(table, classes, [0.2], seed=3)
    assert counted(test) == {"a": 14, "b": 5, "c": 1}
    assert counted(train) == {"a": 56, "b": 20, "c": 4}
    assert test != cut_classes(table, classes, [0.2], seed=4)[1]


@pytest.mark.parametrize("seed", range(5))
def test_a_class_with_one_row_stays_in_training(seed: int) -> None:
    table, classes = of_classes(a=60, rare=1, b=40, scarce=2)
    train, test, validation = cut_classes(table, classes, [0.3, 0.3], seed)
    assert counted(train)["rare"] == 1
    assert counted(train)["scarce"] >= 1
    assert len(test) == len(validation) == 31


def test_without_a_class_of_two_rows_there_are_still_parts() -> None:
    table, classes = of_classes(a=1, b=1, c=1)
    assert [len(part) for part in cut_classes(table, classes, [0.5, 0.5], 0)] == [1, 1, 1]
    with pytest.raises(DataError, match=r"2 different example\(s\) cannot be split into 3 parts"):
        cut_classes(*of_classes(a=1, b=1), [0.5, 0.5], 0)


@pytest.mark.parametrize("rows", [4, 7, 30])
def test_drawn_training_rows_have_a_row_of_each_class(rows: int) -> None:
    table, classes = of_classes(a=60, b=36, rare=3, single=1)
    drawn = sample(table, rows, 0, classes, each=True)
    assert len(drawn) == rows
    assert counted(drawn).keys() == {"a", "b", "rare", "single"}
    assert len(sample(table, 3, 0, classes, each=True)) == 3
    assert counted(sample(table, 25, 0, classes)) == {"a": 15, "b": 9, "rare": 1}


# what a run does with it


def csv_file(tmp_path: Path, labels: list[str], *repeated: str) -> str:
    lines = [f"film {i} was seen,{label}" for i, label in enumerate(labels)]
    (tmp_path / "rows.csv").write_text("\n".join(["text,label", *lines, *repeated]) + "\n")
    return str(tmp_path / "rows.csv")


def load(data: str, **settings):
    return load_parts("classification", TEXT, data=data, **settings)


def test_classes_that_a_part_does_not_have_are_said(tmp_path) -> None:
    data = csv_file(tmp_path, ["a"] * 20 + ["b"] * 20 + ["rare"])
    assert load(data).notes == ("no test row has 'rare' of the 3 classes trained on",)
    (tmp_path / "test.csv").write_text("text,label\nx,a\ny,new\n")
    notes = load(data, test_data=str(tmp_path / "test.csv")).notes
    assert notes == (
        "no test row has 'b', 'rare' of the 3 classes trained on", "no training row has 'new' of the classes of the test rows"
    )  # fmt: skip


OLD_PARTS = {  # the row numbers of train, validation and test that 0.2.0 gave to the file below
    "test_share": (0.3, [0, 2, 3, 4, 5, 6, 9], None, [1, 7, 8]),
    "validation_share": (0.3, [0, 2, 3, 4, 6, 9], [1, 5, 8], [7]),
    "train_rows": (4, [0, 2, 6, 9], None, [7]),
}


@pytest.mark.parametrize("setting", OLD_PARTS)
def test_old_runs_keep_their_rows(tmp_path, setting: str) -> None:
    value, *expected = OLD_PARTS[setting]
    settings: dict[str, Any] = {setting: value}
    parts = load(csv_file(tmp_path, ["a", "b"] * 5, "film 3 was seen,a"), **settings, held_out="random")
    assert [table and table.rows for table in (parts.train, parts.validation, parts.test)] == expected


CONFLICT = ("film 0 was seen,b", "FILM 0  was seen,b", "film 1 was seen,a", "film 2 was seen,a")


def test_of_equal_texts_the_most_frequent_label_is_kept_and_none_in_a_tie(tmp_path) -> None:
    data = csv_file(tmp_path, ["a"] + ["b"] + ["a"] * 9 + ["b"] * 9, *CONFLICT)
    parts = load(data, test_share=0.1)
    rows = {**dict(zip(parts.train.columns["text"], parts.train.columns["label"], strict=True)),
            **dict(zip(parts.test.columns["text"], parts.test.columns["label"], strict=True))}  # fmt: skip
    assert rows["film 0 was seen"] == "b"
    assert "film 1 was seen" not in rows
    assert rows["film 2 was seen"] == "a"
    assert parts.removed["conflicts"] == 1 + 2
    assert parts.removed["train"] == 1 + 1
    assert len(rows) + 5 == 24
    assert parts.notes[0].startswith(
        "2 examples have several labels or answers, in 5 rows: row 1 (line 2) ('a') and row 21 (line 22) ('b')"
    )
    assert "; row 2 (line 3) ('b') and row 23 (line 24) ('a'); " in parts.notes[0]
    assert parts.notes[0].endswith("the most frequent label is kept, no row if there is a tie")
    first = load(data, test_share=0.1, held_out="random")
    assert "the first is kept" in first.notes[0]
    assert first.removed["conflicts"] == 3


def test_several_labels_of_most_texts_are_refused(tmp_path) -> None:
    data = tmp_path / "pairs.csv"
    data.write_text("text,other,label\n" + "".join(f"premise {i // 3},h{i},{'abc'[i % 3]}\n" for i in range(30)))
    with pytest.raises(DataError, match=r"10 examples have several labels or answers, in 30 rows[\s\S]*--text-pair-column"):
        load(str(data))
    pairs = Columns.of("classification", {"text_pair": "other"})
    assert len(load_parts("classification", pairs, data=str(data)).train) == 27


def test_a_run_says_what_was_left_out_and_scores_the_rows_it_trained_for(tmp_path, tiny_llama) -> None:
    data = csv_file(tmp_path, ["a"] * 20 + ["b"] * 20 + ["rare"], "film 1 was seen,b", "film 2 was seen,a")
    settings = {
        "task": "classification", "model": tiny_llama, "data": data, "output_dir": str(tmp_path / "run"), "max_steps": 1,
        "batch_size": 4, "r": 2, "test_share": 0.2, "train_rows": 10,
    }  # fmt: skip
    record = train(RunConfig.of(settings))
    warnings = " | ".join(record.preflight["warnings"])
    assert "1 examples have several labels or answers, in 2 rows: row 2 (line 3) ('a') and row 42 (line 43) ('b')" in warnings
    assert "no test row has 'rare' of the 3 classes trained on" in warnings
    assert "left out: 2 training rows that have an equal example with another label" in warnings
    assert record.data["removed"]["conflicts"] == 2
    assert record.data["labels"] == ["a", "b", "rare"]
    assert open_run(tmp_path / "run").evaluate().tuned.metrics["accuracy"] == record.metrics["after"]["accuracy"]
    # a record of 0.2.0 does not say how its rows were held out
    path = tmp_path / "run" / "record.json"
    content = json.loads(path.read_text())
    assert content["config"].pop("held_out") == "stratified"
    path.write_text(json.dumps(content))
    config = open_run(tmp_path / "run").config
    assert config is not None
    assert config.held_out == "random"
