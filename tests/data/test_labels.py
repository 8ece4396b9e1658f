"""Classes: one form of a label wherever it comes from, and one order of classes."""

import io
import json
import os
import random
import subprocess
import sys
import unicodedata
from decimal import Decimal
from typing import Any

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from alloralib.data.labels import in_order, in_order_of_base, label_ids, label_names, label_notes, label_text, labels
from alloralib.data.table import Table, read_table
from alloralib.errors import DataError


def rows(*values: Any) -> Table:
    return Table("rows.csv", "0", {"label": list(values)}, list(range(2, len(values) + 2)))


ONE_CLASS: dict[str, list[Any]] = {
    "white space around it": ["pos", " pos", "pos ", "pos\u00a0", "pos\r"],
    "composed and decomposed letters": ["café", unicodedata.normalize("NFD", "café")],
    "whole numbers": [1, 1.0, "1", "1.0", " 1 ", Decimal("1.00"), "1.000"],
    "negative numbers": [-2, -2.0, "-2", "-2.0"],
    "zero": [0, 0.0, -0.0, "0", "0.0", "-0.0"],
    "truth": [True, "True", "true", "TRUE"],
    "falsehood": [False, "False", "false", "FALSE"],
}


@pytest.mark.parametrize("case", ONE_CLASS)
def test_equal_labels_are_one_class(case: str) -> None:
    values = ONE_CLASS[case]
    assert len({label_text(value) for value in values}) == 1
    assert label_names(rows(*values, "other"), "label") == in_order([str(label_text(values[0])), "other"])
    for name in values:  # also where the names of an older run have another form
        if isinstance(name, str):
            assert label_ids(rows(*values), "label", ["other", name]) == [1] * len(values)


@pytest.mark.parametrize("text", ["007", "1,000", "1e3", "+1", "v1.5", "1.2.3", "1.", ".0", "New York", "tRUE", "Yes", "٣"])
def test_other_texts_stay_as_they_are(text: str) -> None:
    assert label_text(text) == text


@pytest.mark.parametrize("value", [None, "", "  ", -1, "-1", -1.0, "-1.0", float("nan")])
def test_no_label(value: Any) -> None:
    with pytest.raises(DataError, match=r"row 2 \(line 3\): column 'label' has no label but"):
        labels(rows("a", value), "label")
    if str(value).startswith("-1"):
        with pytest.raises(DataError, match="-1 means no label: if it is a class, give it a name"):
            labels(rows("a", value), "label")


NO_CLASS = {
    "regression is not supported": [0.5, "0.5", -2.25, float("inf"), Decimal("1.5"), "3.50"],
    "several labels per row": [["a", "b"], [], {"a": 1}],
    "write it as text": [b"a"],
}


@pytest.mark.parametrize("remedy", NO_CLASS)
def test_what_is_not_a_class_is_refused_with_the_remedy(remedy: str) -> None:
    for value in NO_CLASS[remedy]:
        with pytest.raises(DataError, match=rf"row 2 \(line 3\): column 'label' has no label but[\s\S]*{remedy}"):
            labels(rows("a", value), "label")


WORDS = st.lists(st.text(min_size=1, max_size=4) | st.integers(-30, 30), min_size=2, max_size=8)


@given(WORDS, st.randoms())
def test_the_order_of_classes_depends_on_the_labels_alone(values: list[Any], rng: random.Random) -> None:
    names = [text for value in values if (text := _text(value)) is not None]
    shuffled = [*names, *names]
    rng.shuffle(shuffled)
    assert in_order(names) == in_order(shuffled)
    assert set(in_order(names)) == set(names)


def _text(value: Any) -> str | None:
    try:
        return label_text(value)
    except ValueError:
        return None


def test_numbers_are_in_the_order_of_their_values() -> None:
    assert in_order(["10", "9", "-2", "-10", "0"]) == ["-10", "-2", "0", "9", "10"]
    assert in_order(["b", "B", "ä", "a", "10", "9"]) == ["10", "9", "B", "a", "b", "ä"]


def test_the_order_is_the_same_in_every_process_and_locale() -> None:
    code = (
        "import locale\n"
        "try: locale.setlocale(locale.LC_ALL, '')\n"
        "except locale.Error: pass\n"
        "from alloralib.data.labels import in_order\n"
        "print(ascii(in_order({'z', 'Z', 'ä', 'a', 'É', 'é', '10', '9'})))"
    )
    found = set()
    for seed, language in (("1", "C"), ("2", "C.UTF-8")):
        environment = os.environ | {"PYTHONHASHSEED": seed, "LC_ALL": language}
        found.add(subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=True).stdout)
    assert len(found) == 1


def test_names_of_the_base_give_the_order_only_if_they_are_the_classes() -> None:
    mnli = ["CONTRADICTION", "NEUTRAL", "ENTAILMENT"]
    data = ["contradiction", "entailment", "neutral"]
    assert in_order_of_base(data, mnli) == ["contradiction", "neutral", "entailment"]
    assert in_order_of_base(["0", "1"], ["negative", "positive"]) == ["0", "1"]
    assert in_order_of_base(["a", "b"], ["b", "a", "c"]) == ["a", "b"]
    assert in_order_of_base(["A", "a"], ["a", "A"]) == ["a", "A"], "exact names count first"
    assert in_order_of_base(["A", "a", "b"], ["a", "b", "B"]) == ["A", "a", "b"]


def test_names_that_differ_in_case_are_said() -> None:
    assert label_notes(["Neg", "pos"], []) == []
    assert "differ in case only, and are different classes" in label_notes(["Pos", "neg", "pos"], [])[0]
    assert "(POS, NEG); the data has pos, neg, which differ in case only" in label_notes(["pos", "neg"], ["POS", "NEG"])[0]
    assert "so it gets a new head" in label_notes(["a", "b"], ["POS", "NEG"])[0]
    assert label_notes(["pos", "neg"], ["pos", "neg"]) == []


# the same classes from every kind of file


def _csv(values: list[Any]) -> bytes:
    return ("text,label\n" + "".join(f"t{i},{value}\n" for i, value in enumerate(values))).encode()


def _jsonl(values: list[Any]) -> bytes:
    return "".join(json.dumps({"text": f"t{i}", "label": value}) + "\n" for i, value in enumerate(values)).encode()


def _parquet(values: Any, metadata: dict[str, str] | None = None) -> bytes:
    content = io.BytesIO()
    table = pyarrow.table({"text": [f"t{i}" for i in range(len(values))], "label": values})
    parquet.write_table(table.replace_schema_metadata(metadata), content)
    return content.getvalue()


_CLASS_LABEL = {"names": ["neg", "pos"], "_type": "ClassLabel"}
_SCHEMA = {"huggingface": json.dumps({"info": {"features": {"label": _CLASS_LABEL, "text": {"_type": "Value"}}}})}
FILES: dict[str, tuple[list[str], dict[str, bytes]]] = {
    "numbers": (
        ["0", "1", "0"],
        {
            "a.csv": _csv([0, 1, 0]),
            "pandas-with-gaps.csv": _csv([0.0, 1.0, 0.0]),
            "a.jsonl": _jsonl([0, 1, 0]),
            "mixed.jsonl": _jsonl([0, "1", 0.0]),
            "a.parquet": _parquet(pyarrow.array([0, 1, 0], pyarrow.int8())),
            "float.parquet": _parquet([0.0, 1.0, 0.0]),
        },
    ),
    "truth": (
        ["false", "true", "false"],
        {
            "pandas.csv": _csv([False, True, False]),
            "excel.csv": _csv(["FALSE", "TRUE", "FALSE"]),
            "a.jsonl": _jsonl([False, True, False]),
            "a.parquet": _parquet([False, True, False]),
        },
    ),
    "names": (
        ["neg", "pos", "neg"],
        {
            "a.csv": _csv([" neg", "pos ", "neg"]),
            "a.parquet": _parquet(["neg", "pos", "neg"]),
            "categories.parquet": _parquet(pyarrow.array(["neg", "pos", "neg"]).dictionary_encode()),
            "datasets.parquet": _parquet([0, 1, 0], _SCHEMA),
        },
    ),
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, (_, files) in FILES.items() for name in files])
def test_every_file_gives_the_same_labels(tmp_path, kind: str, name: str) -> None:
    expected, files = FILES[kind]
    (tmp_path / name).write_bytes(files[name])
    assert labels(read_table(str(tmp_path / name)), "label") == expected


def test_an_index_of_datasets_without_a_name_is_refused_and_minus_one_is_no_label(tmp_path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(_parquet([0, -1, None], _SCHEMA))
    assert read_table(str(path)).columns["label"] == ["neg", None, None]
    path.write_bytes(_parquet([0, 2], _SCHEMA))
    with pytest.raises(DataError, match=r"a.parquet, row 2: class 2 has no name in the file's schema, which names 2"):
        read_table(str(path))


def test_directories_of_images_give_composed_names(tmp_path) -> None:
    for folder in (unicodedata.normalize("NFD", "café"), "thé "):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").write_bytes(b"")
    assert labels(read_table(str(tmp_path)), "label") == ["café", "thé"]
