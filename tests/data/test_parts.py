"""Train, validation and test rows: decided by their seeds, and never sharing an example."""

import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alloralib.data import parts as module
from alloralib.data.duplicates import example_keys, normalized, row_keys
from alloralib.data.forms import Columns, Kind
from alloralib.data.parts import Parts, load_parts, sample
from alloralib.data.table import Table
from alloralib.errors import DataError

from .leaks import check_no_leak

TEXT = Columns.of("classification", {})
PAIR = Columns.of("classification", {"text_pair": "text_pair"})
WRITTEN = Columns.of("causal-lm", {"prompt": "prompt", "completion": "completion"})
FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture
def tables(monkeypatch):
    """Tables by name instead of files."""
    known: dict[str, Table] = {}
    monkeypatch.setattr(module, "read_table", lambda name: known[name])
    return known


def numbered(n: int, name: str = "t", first: int = 0) -> Table:
    texts = [f"{name} {i}" for i in range(first, first + n)]
    return Table(name, "0", {"text": texts, "label": [str(i % 2) for i in range(n)]}, list(range(2, n + 2)))


def texts(table: Table | None) -> list[str]:
    assert table is not None
    return table.columns["text"]


def load(**settings: Any) -> Parts:
    return load_parts("classification", TEXT, **({"data": "all"} | settings))


def test_shares_are_a_partition_that_the_evaluation_seed_decides(tables) -> None:
    tables["all"] = numbered(200)
    first, again, other = (load(validation_share=0.2, test_share=0.1, evaluation_seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert texts(first.test) != texts(other.test)
    assert (len(first.train), len(texts(first.validation)), len(first.test)) == (140, 40, 20)
    assert sorted(texts(first.train) + texts(first.validation) + texts(first.test)) == sorted(texts(tables["all"]))
    assert first.train.lines == sorted(first.train.lines or [])
    assert load(data_seed=9).test == load().test


def test_the_test_rows_do_not_depend_on_the_validation_rows(tables) -> None:
    tables["all"] = numbered(100)
    assert load(validation_share=0.3).test == load().test
    assert len(load().test) == 10
    assert len(load(default_test_share=0.25).test) == 25
    assert load().validation is None


@pytest.mark.parametrize("rows", [3, 4, 10])
def test_every_part_has_a_row(tables, rows: int) -> None:
    tables["all"] = numbered(rows)
    parts = load(validation_share=0.9, test_share=0.9)
    assert min(len(parts.train), len(texts(parts.validation)), len(parts.test)) == 1


def test_too_few_different_rows_cannot_be_split(tables) -> None:
    tables["all"] = numbered(2)
    with pytest.raises(DataError, match=r"2 different example\(s\) cannot be split into 3 parts"):
        load(validation_share=0.5)
    tables["all"] = Table("x", "0", {"text": ["a", "A ", " a"], "label": ["1", "2", "3"]})
    with pytest.raises(DataError, match=r"1 different example\(s\)"):
        load(held_out="random")
    with pytest.raises(
        DataError, match=r"1 examples have several labels or answers, in 3 rows: row 1 \('1'\) and row 2 \('2'\)"
    ):
        load()


def overlapping(tables) -> dict[str, int]:
    """Tables with every kind of duplicate, and how many of each there are."""
    tables["all"] = numbered(20)
    tables["all"].columns["text"][5] = "T  3"  # repeats row 3 but for case and space
    tables["validation"] = numbered(6, first=4)  # 4, 6 to 9 are trained on as well (5 is now another)
    tables["test"] = numbered(6, first=8)  # 8 to 13 of train, 8 and 9 of validation
    return {"train": 1, "conflicts": 0, "train/test": 6, "train/validation": 3, "validation/test": 2, "unlabelled": 0}


def test_an_example_in_two_parts_is_removed_from_the_earlier_one(tables) -> None:
    removed = overlapping(tables)
    parts = load(validation_data="validation", test_data="test")
    assert parts.test == tables["test"]
    assert texts(parts.validation) == ["t 4", "t 5", "t 6", "t 7"]
    assert texts(parts.train) == [f"t {i}" for i in (0, 1, 2, 3, *range(14, 20))]
    assert parts.train.where(4) == "t, row 15 (line 16)"
    assert parts.removed == removed
    check_no_leak("classification", TEXT, parts)


def test_given_validation_and_a_share_to_test_on(tables) -> None:
    overlapping(tables)
    parts = load(validation_data="validation", test_share=0.3)
    check_no_leak("classification", TEXT, parts)
    assert texts(parts.validation) == texts(tables["validation"])


@given(
    st.lists(st.sampled_from("abcdefgh"), min_size=12, max_size=30),
    st.lists(st.sampled_from("ABCDwxyz"), min_size=1, max_size=5),
    st.integers(0, 5),
    st.booleans(),
)
def test_parts_of_random_tables_share_no_example(train: list[str], test: list[str], seed: int, fixed: bool) -> None:
    known = {"all": [*train, "i", "j", "k"], "test": test}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "read_table", lambda n: Table(n, "0", {"text": known[n], "label": ["1"] * len(known[n])}))
        parts = load(validation_share=0.2, test_data="test" if fixed else None, evaluation_seed=seed)
    check_no_leak("classification", TEXT, parts)


def own_key_each(kind: Kind, table: Table, columns: Columns) -> list[str]:
    return [f"{id(table)} {row}" for row in range(len(table))]


BREAKAGES = {
    "nothing is taken out of an earlier part": ("parts._without", lambda table, *rest: table),
    "every row is held to be another example": ("parts.example_keys", own_key_each),
    "repeated rows stay": ("duplicates.row_keys", own_key_each),
    "case and white space count": ("duplicates.normalized", lambda text: text),
}


@pytest.mark.parametrize("broken", BREAKAGES)
def test_a_broken_guard_against_leaks_is_noticed(tables, monkeypatch, broken: str) -> None:
    overlapping(tables)
    name, stand_in = BREAKAGES[broken]
    monkeypatch.setattr(f"alloralib.data.{name}", stand_in)
    with pytest.raises(AssertionError, match=r"(share|repeats) examples"):
        check_no_leak("classification", TEXT, load(validation_data="validation", test_data="test"))


def test_a_share_that_splits_the_rows_of_a_prompt_is_noticed(tables, monkeypatch) -> None:
    rows = [f"p{i % 7}" for i in range(40)]
    tables["all"] = Table("all", "0", {"prompt": rows, "completion": [f"c{i}" for i in range(40)]})

    def parts() -> Parts:
        return load_parts("causal-lm", WRITTEN, data="all", validation_share=0.2)

    check_no_leak("causal-lm", WRITTEN, parts())
    assert parts().removed["train"] == 0, "several completions of a prompt are several rows"
    monkeypatch.setattr(module, "example_keys", row_keys)
    with pytest.raises(AssertionError, match="share examples"):
        check_no_leak("causal-lm", WRITTEN, parts())


def test_all_of_train_in_test_is_refused(tables) -> None:
    tables["all"] = tables["test"] = numbered(5)
    with pytest.raises(DataError, match="every train row is also among the test rows"):
        load(test_data="test")


def test_rows_are_drawn_after_duplicates_are_removed(tables) -> None:
    overlapping(tables)
    parts = load(validation_data="validation", test_data="test", train_rows=3, validation_rows=2, test_rows=4)
    assert (len(parts.train), len(texts(parts.validation)), len(parts.test)) == (3, 2, 4)
    assert parts.removed["train/test"] == 6
    others = [load(test_data="test", train_rows=3, data_seed=seed) for seed in range(5)]
    assert len({tuple(texts(p.train)) for p in others}) > 1
    assert all(p.test == tables["test"] for p in others)


def test_sample_keeps_order_and_lines() -> None:
    table = numbered(50)
    part = sample(table, 10, seed=3)
    assert texts(part) == [f"t {line - 2}" for line in part.lines or []]
    assert all(a < b for a, b in pairwise(part.lines or []))
    assert sample(table, 500, seed=3) is table


def test_files_are_read_and_their_columns_named(tmp_path) -> None:
    rng = random.Random(0)
    path = tmp_path / "a.csv"
    path.write_text("sentence,kind\n" + "".join(f"{rng.random()},x\n" for _ in range(20)))
    parts = load_parts("classification", Columns(text="sentence", label="kind"), data=str(path))
    assert (len(parts.train), len(parts.test)) == (18, 2)
    with pytest.raises(DataError, match="no column 'text' for --text-column"):
        load_parts("classification", TEXT, data=str(path))


def test_when_two_rows_are_the_same_example(tmp_path) -> None:
    def keys(kind: Kind, columns: Columns, **values: list[Any]) -> list[str]:
        return example_keys(kind, Table("x", "0", values), columns)

    assert normalized("STRASSE\u00a0 Straße\n") == "strasse strasse"
    one, two, three = keys(
        "classification", PAIR, text=["a b", "a", "A  b"], text_pair=["c", "b c", "c"], label=["1", "1", "2"]
    )
    assert one == three != two
    one, two = keys("causal-lm", WRITTEN, prompt=["p", "p"], completion=["a", "b"])
    assert one == two
    choices = Columns.of("multiple-choice", {})
    one, two, three = keys(
        "multiple-choice", choices, prompt=["p"] * 3, choices=[["a", "b"], ["a", "b"], ["a", "c"]], answer=["a", "b", "a"]
    )
    assert one == two != three


def test_conversations_are_the_same_example_if_all_but_the_assistant_say_the_same() -> None:
    def talk(*turns: tuple[str, str]) -> list[dict[str, str]]:
        return [{"role": role, "content": content} for role, content in turns]

    chats = [
        talk(("user", "Hi"), ("assistant", "Hello")),
        talk(("human", "hi "), ("gpt", "Good day")),
        talk(("user", "Hi"), ("assistant", "Hello"), ("user", "Bye"), ("assistant", "Bye")),
        talk(("system", "Be brief"), ("assistant", "One")),
        talk(("system", "Be brief"), ("assistant", "Two")),
    ]
    keys = example_keys("chat", Table("x", "0", {"messages": chats}), Columns(messages="messages"))
    assert keys[0] == keys[1]
    assert len(set(keys)) == 4


def test_copies_of_an_image_are_one_example(tmp_path) -> None:
    image = (FIXTURES / "images/cat/0.png").read_bytes()
    other = (FIXTURES / "images/dog/0.png").read_bytes()
    cells = [{"bytes": image, "path": None}, {"bytes": image, "path": "copy.png"}, {"bytes": other, "path": None}]
    one, two, three = example_keys(
        "image-classification",
        Table("x", "0", {"image": cells, "label": ["a", "a", "b"]}),
        Columns(image="image", label="label"),
    )
    assert one == two != three
