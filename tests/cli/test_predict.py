"""`allora predict`: classes, probabilities and answers for rows without labels."""

import csv
import gzip
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pytest
import torch
from peft import PeftModel
from pyarrow import parquet
from transformers import AutoModelForSequenceClassification, AutoTokenizer, GPT2Config, GPT2LMHeadModel, GPT2Tokenizer

from alloralib import open_run
from alloralib.cli.main import build_parser, main
from alloralib.cli.predict import _progress
from alloralib.data.unlabeled import Unlabeled
from alloralib.records import RunRecord

from ..tiny import bytes_of, save
from ..trained import command, jsonl, sentences
from .commands import refused

TEXTS = [text for text, _ in sentences(60)]


def table(path, rows: list[dict]) -> str:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def out_of(capsys, *words: str) -> str:
    capsys.readouterr()
    assert main(["predict", *map(str, words)]) == 0
    return capsys.readouterr().out


def rows_of(capsys, *words: str) -> list[dict]:
    """What the command prints as JSON lines."""
    return [json.loads(line) for line in out_of(capsys, *words, "--format", "jsonl").splitlines()]


def csv_of(capsys, *words: str) -> list[dict]:
    return list(csv.DictReader(io.StringIO(out_of(capsys, *words))))


@pytest.fixture
def piped(monkeypatch):
    """Put bytes on standard input."""
    return lambda content: monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))


@pytest.fixture
def run(trained) -> str:
    """A classifier of texts."""
    return str(trained("classification"))


# the same answers as elsewhere


@pytest.mark.parametrize("name", ["classification", "pairs", "image-classification", "multiple-choice"])
def test_the_probabilities_are_those_of_the_evaluation(trained, tmp_path, capsys, name: str) -> None:
    """The run's own test rows, without their answers, against the run's predictions.jsonl."""
    run = open_run(trained(name))
    data = run.data
    rows = data.read(None, None, data.columns(None, {}))
    inputs = {part: column for part, column in data.columns(None, {}).named().items() if part not in ("label", "answer")}
    cells = {column: rows.columns[column] for column in inputs.values()}
    if name == "image-classification":
        cells = {"image": [str(trained(name).parent / "images" / path) for path in cells["image"]]}
    unlabeled = [dict(zip(cells, values, strict=True)) for values in zip(*cells.values(), strict=True)]
    found = rows_of(capsys, trained(name), "--data", jsonl(tmp_path / "new.jsonl", unlabeled))
    written = [json.loads(line) for line in (trained(name) / "predictions.jsonl").read_text().splitlines()]
    assert [row["row"] for row in found] == [row["row"] for row in written]
    for row, item, cell in zip(found, written, unlabeled, strict=True):
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-6)
        assert row["probability"] == max(row["probabilities"].values()) == row["probabilities"][row["predicted"]]
        if name == "multiple-choice":
            assert list(row["probabilities"]) == cell["choices"]
            assert row["predicted"] == cell["choices"][item["chosen"]]
            expected = torch.tensor(item["log_probabilities"]).softmax(0).tolist()
            assert list(row["probabilities"].values()) == pytest.approx(expected, abs=1e-5)
        else:
            assert list(row["probabilities"]) == run.labels
            assert row["predicted"] == item["predicted"]
            assert row["probability"] == pytest.approx(item["probability"], abs=1e-5)


@pytest.mark.parametrize("name", ["classification", "pairs"])
def test_the_probabilities_are_those_of_stock_transformers_and_peft(trained, tmp_path, capsys, name: str) -> None:
    """Row by row, so without padding."""
    record = RunRecord.read(trained(name) / "record.json")
    base = AutoModelForSequenceClassification.from_pretrained(record.config["model"], num_labels=2)
    model, tokenizer = PeftModel.from_pretrained(base, trained(name)).eval(), AutoTokenizer.from_pretrained(trained(name))
    texts = [" ".join(TEXTS[i : i + 1 + i % 5]) for i in range(40)]  # of different lengths
    rows = [{"text": text} if name == "classification" else {"a": text, "b": TEXTS[-1 - i]} for i, text in enumerate(texts)]
    found = rows_of(capsys, trained(name), "--data", jsonl(tmp_path / "new.jsonl", rows))
    for row, cells in zip(found, rows, strict=True):
        with torch.no_grad():
            expected = model(**tokenizer(*cells.values(), return_tensors="pt")).logits[0].softmax(0)
        assert list(row["probabilities"].values()) == pytest.approx(expected.tolist(), abs=1e-5)
        assert row["predicted"] == record.data["labels"][int(expected.argmax())]


def test_rows_keep_their_order_whatever_the_batches_and_chunks(run, tmp_path, capsys, monkeypatch) -> None:
    texts = [" ".join(TEXTS[i : i + 1 + i % 7]) for i in range(50)]
    data = jsonl(tmp_path / "new.jsonl", [{"text": text, "id": i * i} for i, text in enumerate(texts)])
    expected = rows_of(capsys, run, "--data", data, "--keep", "id")
    assert [(row["row"], row["id"]) for row in expected] == [(i, i * i) for i in range(50)]
    monkeypatch.setattr("alloralib.cli.predict._CHUNK", 7)
    for size in (1, 3, 50):
        found = rows_of(capsys, run, "--data", data, "--keep", "id", "--batch-size", str(size))
        for row, other in zip(found, expected, strict=True):
            assert row["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)
            assert (row["row"], row["id"], row["predicted"]) == (other["row"], other["id"], other["predicted"])


# what it reads


def test_every_format_gives_the_same(run, tmp_path, capsys, piped) -> None:
    rows = [{"text": text, "id": str(i)} for i, text in enumerate(TEXTS[:9])]
    table(tmp_path / "new.csv", rows)
    (tmp_path / "new.tsv").write_text("text\tid\n" + "".join(f"{row['text']}\t{row['id']}\n" for row in rows))
    jsonl(tmp_path / "new.jsonl", rows)
    (tmp_path / "new.json").write_text(json.dumps(rows))
    (tmp_path / "new.txt").write_text("".join(row["text"] + "\n" for row in rows))
    (tmp_path / "last.txt").write_text("\r\n".join(row["text"] for row in rows))  # of Windows, without the last line's end
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "new.parquet")
    for name in ("new.csv", "new.jsonl", "new.txt"):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 10
    expected = rows_of(capsys, run, "--data", tmp_path / "new.csv")
    assert len(expected) == 9
    for name in names:
        assert rows_of(capsys, run, "--data", tmp_path / name) == expected, name
        if not name.endswith((".gz", ".parquet")):
            form = {"txt": "lines"}.get(name.rpartition(".")[2], name.rpartition(".")[2])
            piped((tmp_path / name).read_bytes())
            assert rows_of(capsys, run, "--input-format", form) == expected, name
    for name in ("new.txt", "new.jsonl"):  # formats that standard input has without a flag
        for data in ([], ["--data", "-"]):
            piped((tmp_path / name).read_bytes())
            assert rows_of(capsys, run, *data) == expected, name


def test_a_label_column_is_not_needed_and_not_read(run, tmp_path, capsys) -> None:
    plain = rows_of(capsys, run, "--data", table(tmp_path / "a.csv", [{"text": text} for text in TEXTS[:4]]))
    for number, label in enumerate(("", "-1", "no such class")):
        data = table(tmp_path / f"{number}.csv", [{"text": text, "label": label} for text in TEXTS[:4]])
        assert rows_of(capsys, run, "--data", data) == plain
    kept = csv_of(capsys, run, "--data", data, "--keep", "label")
    assert {row["label"] for row in kept} == {"no such class"}


def test_columns_of_other_names(run, trained, tmp_path, capsys) -> None:
    plain = rows_of(capsys, run, "--data", table(tmp_path / "a.csv", [{"text": text} for text in TEXTS[:4]]))
    data = table(tmp_path / "b.csv", [{"text": "bad", "words": text} for text in TEXTS[:4]])
    assert rows_of(capsys, run, "--data", data, "--text-column", "words") == plain
    pairs = [{"one": text, "other": text} for text in TEXTS[:4]]
    words = ["--text-column", "one", "--text-pair-column", "other"]
    found = rows_of(capsys, trained("pairs"), "--data", jsonl(tmp_path / "c.jsonl", pairs), *words)
    expected = open_run(trained("pairs")).predict([(text, text) for text in TEXTS[:4]])
    for row, prediction in zip(found, expected, strict=True):
        assert row["probabilities"] == pytest.approx(prediction.probabilities, abs=1e-6)


def test_rows_may_have_columns_that_others_have_not(run, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("alloralib.cli.predict._CHUNK", 2)
    rows = [{"text": TEXTS[0], "id": 1}, {"text": TEXTS[1]}, {"text": TEXTS[2]}, {"text": TEXTS[3], "date": "1905"}]
    data = jsonl(tmp_path / "new.jsonl", rows)
    found = csv_of(capsys, run, "--data", data, "--keep", "all")
    assert [(row["id"], row["date"]) for row in found] == [("1", ""), ("", ""), ("", ""), ("", "1905")]


def test_images(trained, tmp_path, capsys, piped, monkeypatch) -> None:
    run, images = trained("image-classification"), trained("image-classification").parent / "images"
    flat = tmp_path / "photos"
    flat.mkdir()
    for i in range(10):
        (flat / f"{i}.png").write_bytes((images / ("dark" if i % 2 else "light") / f"{i}.png").read_bytes())
    (flat / ".hidden").write_text("")
    (flat / "notes.txt").write_text("")
    found = csv_of(capsys, run, "--data", flat)
    assert [row["image"] for row in found] == [f"{i}.png" for i in range(10)]
    assert [row["predicted"] for row in found] == ["light", "dark"] * 5
    main(["predict", str(run), "--data", str(flat)])
    assert "1 files that are no images were left out, such as notes.txt" in capsys.readouterr().err
    found = csv_of(capsys, run, "--data", images)  # with a directory per class, as for training
    assert len(found) == 48
    assert all(row["image"].startswith(row["predicted"] + "/") for row in found)
    assert [row["predicted"] for row in csv_of(capsys, run, "--data", flat / "3.png")] == ["dark"]
    rows = [{"image": {"bytes": (flat / f"{i}.png").read_bytes(), "path": None}} for i in range(4)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "new.parquet")
    encoded = csv_of(capsys, run, "--data", tmp_path / "new.parquet")
    assert [row["predicted"] for row in encoded] == ["light", "dark"] * 2
    (tmp_path / "list.txt").write_text("photos/1.png\nphotos/2.png\n")  # relative to the list
    assert [row["predicted"] for row in csv_of(capsys, run, "--data", tmp_path / "list.txt")] == ["dark", "light"]
    monkeypatch.chdir(flat)
    piped(b"1.png\n2.png\n")  # relative to the working directory
    assert [row["predicted"] for row in csv_of(capsys, run)] == ["dark", "light"]


def test_a_registered_set_without_labels(run, tmp_path, capsys) -> None:
    """Its test rows often have none: for training they are left out, here they are what is asked for."""
    (tmp_path / "sets" / "sst2").mkdir(parents=True)
    rows = [{"text": text, "label": -1} for text in TEXTS[:5]]
    jsonl(tmp_path / "sets" / "sst2" / "test.jsonl", rows)
    copied = tmp_path / "copied"
    shutil.copytree(run, copied)
    record = json.loads((copied / "record.json").read_text())
    del record["config"]["test_share"]
    record["config"] |= {"data": "sst2", "data_dir": str(tmp_path / "sets")}  # as if trained on it
    (copied / "record.json").write_text(json.dumps(record))
    expected = rows_of(capsys, run, "--data", jsonl(tmp_path / "plain.jsonl", rows))
    assert rows_of(capsys, copied, "--data", "sst2") == expected
    refused(["predict", str(copied), "--data", "sst2", "--split", "train"], tmp_path, capsys, "sst2 has no train rows")


def test_rows_without_text(run, tmp_path, capsys) -> None:
    """They are refused with their place, or left out with --skip-empty; the others keep their numbers."""
    rows = [{"text": TEXTS[0]}, {"text": " "}, {"text": None}, {"text": float("nan")}, {}, {"text": TEXTS[1]}]
    data = jsonl(tmp_path / "new.jsonl", rows)
    refused(
        ["predict", run, "--data", data], tmp_path, capsys, r"row 2 \(line 2\): column 'text' has no text[\s\S]*--skip-empty"
    )
    assert main(["predict", run, "--data", data, "--skip-empty", "--format", "jsonl"]) == 0
    out, err = capsys.readouterr()
    assert [json.loads(line)["row"] for line in out.splitlines()] == [0, 5]
    assert "4 rows without text are left out" in err
    (tmp_path / "new.txt").write_text(f"{TEXTS[0]}\n\n{TEXTS[1]}\n")
    refused(["predict", run, "--data", str(tmp_path / "new.txt")], tmp_path, capsys, r"row 2 \(line 2\)")
    assert [row["row"] for row in rows_of(capsys, run, "--data", tmp_path / "new.txt", "--skip-empty")] == [0, 2]
    number = jsonl(tmp_path / "number.jsonl", [{"text": 42}])
    refused(["predict", run, "--data", number, "--skip-empty"], tmp_path, capsys, "has no text but 42")


# what it writes


def test_csv(run, tmp_path, capsys) -> None:
    data = jsonl(tmp_path / "new.jsonl", [{"text": text} for text in TEXTS[:3]])
    lines = out_of(capsys, run, "--data", data).splitlines()
    assert lines[0] == "row,predicted,probability,probability_neg,probability_pos"
    assert len(lines) == 4
    for row, other in zip(csv_of(capsys, run, "--data", data), rows_of(capsys, run, "--data", data), strict=True):
        assert (row["row"], row["predicted"]) == (str(other["row"]), other["predicted"])
        assert float(row["probability"]) == other["probability"]
        assert {name: float(row[f"probability_{name}"]) for name in ("neg", "pos")} == other["probabilities"]


def test_the_most_probable_classes(run, tmp_path, capsys) -> None:
    data = jsonl(tmp_path / "new.jsonl", [{"text": text} for text in TEXTS[:6]])
    for row in rows_of(capsys, run, "--data", data, "--top", "2"):
        assert next(iter(row["probabilities"])) == row["predicted"]
        assert sorted(row["probabilities"].values(), reverse=True) == list(row["probabilities"].values())
    assert out_of(capsys, run, "--data", data, "--top", "1").splitlines()[0] == "row,predicted,probability"
    found = csv_of(capsys, run, "--data", data, "--top", "9")
    assert list(found[0]) == ["row", "predicted", "probability", "predicted_2", "probability_2"]
    assert all(float(row["probability"]) + float(row["probability_2"]) == pytest.approx(1) for row in found)
    assert all({row["predicted"], row["predicted_2"]} == {"neg", "pos"} for row in found)


def test_columns_that_are_kept(run, tmp_path, capsys) -> None:
    rows = [{"predicted": "x", "text": TEXTS[0], "id": 7, "a, b": 'q"uo\nte', "tags": ["é", None], "none": None, "yes": True}]
    data = jsonl(tmp_path / "new.jsonl", rows)
    (found,) = rows_of(capsys, run, "--data", data, "--keep", "all")
    assert found["input_predicted"] == "x"
    assert {name: found[name] for name in rows[0] if name != "predicted"} == {
        k: v for k, v in rows[0].items() if k != "predicted"
    }
    (found,) = csv_of(capsys, run, "--data", data, "--keep", "all")
    assert (found["input_predicted"], found["id"], found["a, b"]) == ("x", "7", 'q"uo\nte')
    assert (found["tags"], found["none"], found["yes"]) == ('["é", null]', "", "true")
    (found,) = csv_of(capsys, run, "--data", data, "--keep", '"a, b",id')
    assert list(found)[:3] == ["row", "a, b", "id"]
    refused(["predict", run, "--data", data, "--keep", "idd"], tmp_path, capsys, "no column 'idd' for --keep[\\s\\S]*'id'")


def test_what_was_predicted_can_be_predicted_again(run, tmp_path, capsys) -> None:
    data = table(tmp_path / "new.csv", [{"text": text} for text in TEXTS[:3]])
    for number in range(2):
        output = tmp_path / f"{number}.csv"
        assert main(["predict", run, "--data", data, "--keep", "all", "--output", str(output)]) == 0
        data = str(output)
    (first, *_) = csv.DictReader(io.StringIO(output.read_text(encoding="utf-8")))
    assert first["input_predicted"] == first["predicted"]
    assert first["input_row"] == first["row"] == "0"


def test_a_file_appears_when_it_is_complete(run, tmp_path, capsys, monkeypatch) -> None:
    data = jsonl(tmp_path / "new.jsonl", [{"text": text, "id": i} for i, text in enumerate(TEXTS)])
    for name in ("out.csv", "out.jsonl"):
        expected = out_of(capsys, run, "--data", data, "--format", name.rpartition(".")[2])
        said = out_of(capsys, run, "--data", data, "--output", tmp_path / name)
        assert said == f"{tmp_path / name}: 60 rows of {data}\n"
        assert (tmp_path / name).read_text(encoding="utf-8") == expected
    refused(["predict", run, "--data", data, "--output", str(tmp_path / "out.csv")], tmp_path, capsys, "already exists")
    refused(["predict", run, "--data", data, "--output", data], tmp_path, capsys, "already exists")
    monkeypatch.setattr("alloralib.cli.predict._CHUNK", 8)
    with pytest.MonkeyPatch.context() as patch:

        def fails(*arguments, **settings):
            if len(started := list((tmp_path).glob(".half.csv*/half.csv"))) and started[0].stat().st_size:
                raise KeyboardInterrupt
            return predict(*arguments, **settings)

        from alloralib.training.opened import OpenRun

        predict = OpenRun.predict_table
        patch.setattr(OpenRun, "predict_table", fails)
        assert main(["predict", run, "--data", data, "--output", str(tmp_path / "half.csv")]) == 130
    assert not list(tmp_path.glob("*half*"))


def test_the_bar_is_for_terminals(capsys) -> None:
    with _progress(3, hidden=False) as bar:  # standard error of a test is no terminal
        bar.update(3)
    assert capsys.readouterr().err == ""


# answers of language models


@pytest.mark.parametrize("name", ["causal-lm", "plain text"])
def test_answers_to_prompts(trained, tmp_path, capsys, piped, name: str) -> None:
    column = "prompt" if name == "causal-lm" else "text"
    prompts = [f"{text} is" for text in TEXTS[:20]]
    expected = open_run(trained(name)).generate(prompts, max_new_tokens=4)
    data = jsonl(tmp_path / "new.jsonl", [{column: prompt, "id": i} for i, prompt in enumerate(prompts)])
    found = rows_of(capsys, trained(name), "--data", data, "--max-new-tokens", "4", "--keep", "id", "--batch-size", "3")
    assert [row["answer"] for row in found] == expected
    assert [row["id"] for row in found] == list(range(20))
    piped("".join(prompt + "\n" for prompt in prompts).encode())
    assert [row["answer"] for row in csv_of(capsys, trained(name), "--max-new-tokens", "4")] == expected
    data = jsonl(tmp_path / "other.jsonl", [{"q": prompt} for prompt in prompts])
    assert [
        row["answer"] for row in rows_of(capsys, trained(name), "--data", data, "--prompt-column", "q", "--max-new-tokens", "4")
    ] == expected
    sampled = [
        rows_of(
            capsys,
            trained(name),
            "--data",
            data,
            "--text-column",
            "q",
            "--temperature",
            "3",
            "--seed",
            seed,
            "--max-new-tokens",
            "4",
        )
        for seed in "112"
    ]
    assert sampled[0] == sampled[1] != sampled[2]


@pytest.mark.parametrize("name", ["chat", "sharegpt"])
def test_answers_to_conversations(trained, tmp_path, capsys, piped, name: str) -> None:
    run = trained(name)
    names = {"user": "human", "assistant": "gpt"} if name == "sharegpt" else {"user": "user", "assistant": "assistant"}
    role, content, column = ("from", "value", "conversations") if name == "sharegpt" else ("role", "content", "messages")

    def written(*turns: tuple[str, str]) -> list[dict]:
        return [{role: names[who], content: text} for who, text in turns]

    user, assistant, more = ("user", TEXTS[0]), ("assistant", "good"), ("user", "and the music")
    asked = [[user], [user, assistant, more], [user, assistant, more, ("assistant", "fine")], [user, ("assistant", "")]]
    data = jsonl(tmp_path / "new.jsonl", [{column: written(*turns)} for turns in asked])
    found = rows_of(capsys, run, "--data", data, "--max-new-tokens", "3")
    conversations = [[{"role": who, "content": text} for who, text in turns] for turns in asked]
    for number in (2, 3):  # what the assistant said last is what is predicted; it may be empty
        conversations[number].pop()
    assert [row["answer"] for row in found] == open_run(run).generate(conversations, max_new_tokens=3)
    assert found[1]["answer"] == found[2]["answer"]
    piped(f"{TEXTS[0]}\n".encode())  # a line is a message of the user
    assert [row["answer"] for row in rows_of(capsys, run, "--max-new-tokens", "3")] == [found[0]["answer"]]
    data = table(tmp_path / "new.csv", [{"prompt": TEXTS[0]}])  # and so is a prompt
    for words in ([], ["--system", "story"]):
        system = words[1] if words else None
        expected = open_run(run).generate([TEXTS[0]], max_new_tokens=3, system=system)
        assert [row["answer"] for row in rows_of(capsys, run, "--data", data, "--max-new-tokens", "3", *words)] == expected
    alone = jsonl(tmp_path / "alone.jsonl", [{column: written(assistant)}])
    refused(["predict", str(run), "--data", alone], tmp_path, capsys, r"row 1 \(line 1\): nothing to answer")


def test_choices(trained, tmp_path, capsys) -> None:
    rows = [
        {"prompt": f"{text} is ", "choices": json.dumps(["bad", "good", "very, very fine"][: 2 + i % 2])}
        for i, text in enumerate(TEXTS[:6])
    ]
    data = table(tmp_path / "new.csv", rows)
    found = csv_of(capsys, trained("multiple-choice"), "--data", data)
    assert list(found[0]) == ["row", "predicted", "probability", "probabilities"]
    for row, line in zip(rows, found, strict=True):
        by_choice = json.loads(line["probabilities"])
        assert list(by_choice) == json.loads(row["choices"])
        assert sum(by_choice.values()) == pytest.approx(1)
        assert line["predicted"] == max(by_choice, key=by_choice.__getitem__)
    (one, *_) = rows_of(capsys, trained("multiple-choice"), "--data", data, "--top", "1")
    assert one["probabilities"] == {one["predicted"]: one["probability"]}
    in_python = open_run(trained("multiple-choice")).predict([(row["prompt"], row["choices"]) for row in rows])
    assert [p.label for p in in_python] == [line["predicted"] for line in found]
    bad = jsonl(tmp_path / "bad.jsonl", [{"prompt": "film", "choices": ["a", "b"]}, {"prompt": "film", "choices": ["a"]}])
    refused(
        ["predict", str(trained("multiple-choice")), "--data", bad],
        tmp_path,
        capsys,
        r"row 2 \(line 2\): expected at least two",
    )


# mistakes


@pytest.mark.parametrize(
    ("content", "words", "match"),
    [
        ("txt\nfilm good\n", [], r"no column 'text' for --text-column[\s\S]*did you mean 'txt'"),
        ("text\nfilm good\n", ["--text-column", "words"], "no column 'words' for --text-column"),
        ("text,id\nfilm good,1\nfilm,2,3\n", ["--output", "OUT.csv"], r"row 2 \(line 3\): 3 fields, but the header has 2"),
        ("text\n", [], "no rows"),
        ("", [], "no rows"),
        ('text\n"film\n', [], "malformed"),
        ("text\nfilm\n", ["--image-column", "x"], r"--image-column has no meaning for task classification[\s\S]*--text-column"),
        ("text\nfilm\n", ["--max-new-tokens", "3"], "--max-new-tokens has no meaning for task classification"),
        ("text\nfilm\n", ["--system", "x"], "--system has no meaning for task classification"),
        ("text\nfilm\n", ["--format", "jsnl"], "unknown --format 'jsnl'[\\s\\S]*did you mean 'jsonl'"),
        ("text\nfilm\n", ["--output", "OUT.txt"], "--format csv or jsonl"),
        ("text\nfilm\n", ["--output", "OUT.csv", "--format", "jsonl"], "the name says csv"),
        ("text\nfilm\n", ["--top", "0"], "at least 1"),
        ("text\nfilm\n", ["--batch-size", "0"], "at least 1"),
        ("text\nfilm\n", ["--split", "test"], "a split is for a registered set"),
        ("text\nfilm\n", ["--input-format", "csv"], "for standard input"),
        ("text\nfilm\n", ["--label-column", "x"], "unknown argument '--label-column'"),
    ],
)
def test_mistakes(run, tmp_path, capsys, content: str, words: list[str], match: str) -> None:
    (tmp_path / "new.csv").write_text(content)
    words = [str(tmp_path / word) if word.startswith("OUT") else word for word in words]
    refused(["predict", run, "--data", str(tmp_path / "new.csv"), *words], tmp_path, capsys, match)


def test_mistakes_of_other_kinds(run, trained, tmp_path, capsys) -> None:
    data = jsonl(tmp_path / "new.jsonl", [{"text": "film", "image": "nowhere.png", "messages": []}])
    images = str(trained("image-classification").parent / "images")
    (tmp_path / "lines.txt").write_text("film\n")
    lines = str(tmp_path / "lines.txt")
    for words, match in (
        (["nowhere", "--data", data], "no such directory"),
        ([run, "--data", str(tmp_path / "nwe.jsonl")], "did you mean 'new.jsonl'"),
        ([run, "--data", str(tmp_path / "new.txt")], "no such file"),
        ([run, "--data", images], "images, but the run's task is classification"),
        ([run, "--data", images + "/dark/1.png"], "images, but the run's task is classification"),
        ([str(trained("image-classification")), "--data", data], r"row 1 \(line 1\): no such image file"),
        ([str(trained("pairs")), "--data", lines], r"the run needs 2 columns \(a, b\)[\s\S]*--input-format"),
        ([str(trained("pairs")), "--data", data], "no column 'a' for --text-column"),
        ([str(trained("chat")), "--data", data], r"row 1 \(line 1\): an empty conversation"),
        ([str(trained("chat")), "--data", data, "--top", "2"], "--top has no meaning for task chat"),
        ([str(trained("causal-lm")), "--data", data], r"no column 'prompt' for --prompt-column"),
        ([str(trained("causal-lm")), "--data", data, "--system", "x"], "no meaning for task causal-lm"),
        ([str(trained("causal-lm")), "--data", data, "--prompt-column", "a", "--text-column", "b"], "exclude each other"),
        ([str(trained("multiple-choice")), "--data", lines], "needs 2 columns"),
        ([str(trained("multiple-choice")), "--data", data, "--seed", "1"], "--seed has no meaning for task multiple-choice"),
    ):
        refused(["predict", *words], tmp_path, capsys, match)
    (tmp_path / "empty").mkdir()
    refused(["predict", run, "--data", lines, "--output", str(tmp_path / "empty")], tmp_path, capsys, "a directory")
    words = ["predict", str(trained("image-classification")), "--data", str(tmp_path / "empty")]
    refused(words, tmp_path, capsys, "no image inside")
    parquet.write_table(pyarrow.Table.from_pylist([{"text": "film", "raw": b"\x00"}]), tmp_path / "new.parquet")
    words = ["predict", run, "--data", str(tmp_path / "new.parquet"), "--keep", "all", "--output", str(tmp_path / "out.csv")]
    refused(words, tmp_path, capsys, "holds bytes")


@pytest.mark.parametrize(
    ("content", "words", "match"),
    [
        (b"", [], "standard input: no rows"),
        (b"text,id\nfilm,1\n", [], r"looks like a header[\s\S]*--input-format csv, or --input-format lines"),
        (b"id\ttext\n1\tfilm\n", [], r"--input-format tsv, or"),
        (b"text\nfilm\n", ["--input-format", "xml"], "unknown --input-format 'xml'"),
        (b'{"text": "film"}\n{"text": 1\n', [], r"^allora: standard input, row 2 \(line 2\): not JSON"),
        (b"film\n\xff\n", [], r"^allora: standard input, line 2: not UTF-8"),
        (b"film\n\n", [], r"^allora: standard input, row 2 \(line 2\): column 'text' has no text"),
        (b"film\n", ["--split", "test"], "--split is for a registered set"),
    ],
)
def test_mistakes_on_standard_input(run, tmp_path, capsys, piped, content: bytes, words: list[str], match: str) -> None:
    piped(content)
    refused(["predict", run, *words], tmp_path, capsys, match)


def test_a_terminal_is_not_waited_for(run, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    refused(["predict", run], tmp_path, capsys, r"no rows to predict[\s\S]*--data FILE, or pipe")


def test_lines_that_look_like_something_else(run, capsys, piped) -> None:
    for content in (b"text\nfilm\n", b'{"text": film\n', b"[film]\nfilm\n"):
        piped(content)
        words = ["--input-format", "lines"] if content.startswith(b"text") else []
        assert len(rows_of(capsys, run, *words)) == content.count(b"\n")


def test_in_a_pipe(run, tmp_path) -> None:
    """A process of its own: UTF-8 whatever the encoding of standard output, and a quiet end when its reader ends."""
    (tmp_path / "lines").write_text("film été\n" + "film good\n" * 9999, encoding="utf-8")
    with (tmp_path / "lines").open("rb") as lines, (tmp_path / "errors").open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "alloralib.cli", "predict", run, "--keep", "text", "--batch-size", "256"],
            stdin=lines, stdout=subprocess.PIPE, stderr=errors, env=os.environ | {"PYTHONIOENCODING": "ascii"},
        )  # fmt: skip
        head = [process.stdout.readline().decode() for _ in range(2)]
        process.stdout.close()
        assert process.wait(timeout=120) == 128 + 13
    assert head[0] == "row,text,predicted,probability,probability_neg,probability_pos\n"
    assert head[1].startswith("0,film été,")
    assert (tmp_path / "errors").read_text() == ""


# what users of other tools reported


@pytest.fixture
def gpt2(tmp_path) -> str:
    """A model of 64 positions, whose tokenizer has no token for padding: a token per byte."""
    tokenizer = bytes_of(GPT2Tokenizer)
    torch.manual_seed(0)
    sizes = {"n_positions": 64, "n_embd": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.2}
    config = GPT2Config(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, bos_token_id=None, **sizes)
    return save(tmp_path / "gpt2", GPT2LMHeadModel(config), tokenizer)


def test_batches_without_padding_token_long_texts_and_numbered_classes(gpt2, tmp_path, capsys) -> None:
    """Row by row against stock transformers and PEFT."""
    rng = random.Random(0)
    rows = [{"text": "".join(rng.choices("abcdefg ", k=rng.randint(3, 150))) + "x", "label": i % 11} for i in range(44)]
    rows[5]["text"] += "<|endoftext|>"  # which is also what pads
    data = jsonl(tmp_path / "rows.jsonl", rows)
    flags = {"task": "classification", "model": gpt2, "data": data, "max_steps": 2, "max_length": 64, "batch_size": 4}
    assert main(command(tmp_path, **flags)) == 0
    run = tmp_path / "run"
    base = AutoModelForSequenceClassification.from_pretrained(gpt2, num_labels=11)
    model, tokenizer = PeftModel.from_pretrained(base, run).eval(), AutoTokenizer.from_pretrained(run)
    found = csv_of(capsys, run, "--data", data, "--batch-size", "44")
    assert list(found[0])[3:] == [f"probability_{i}" for i in range(11)]  # 10 after 9, not after 1
    for row, line in zip(rows, found, strict=True):
        with torch.no_grad():
            logits = model(**tokenizer(row["text"], truncation=True, max_length=64, return_tensors="pt")).logits[0]
        assert [float(line[f"probability_{i}"]) for i in range(11)] == pytest.approx(logits.softmax(0).tolist(), abs=1e-5)
        assert line["predicted"] == str(int(logits.argmax()))
    (run / "record.json").unlink()  # and with it the length that texts are cut at: the model's positions are left
    assert csv_of(capsys, run, "--data", data, "--batch-size", "44") == found


def test_prompts_that_are_longer_than_the_model(gpt2, tmp_path, capsys) -> None:
    rows = jsonl(tmp_path / "rows.jsonl", [{"text": "abc" * i} for i in range(1, 13)])
    assert main(command(tmp_path, task="causal-lm", model=gpt2, data=rows, max_steps=2, max_length=64)) == 0
    run = str(tmp_path / "run")
    data = jsonl(tmp_path / "new.jsonl", [{"text": "ab"}, {"text": "abc" * 30}])
    words = ["predict", run, "--data", data, "--output", str(tmp_path / "out.csv"), "--max-new-tokens", "8"]
    refused(words, tmp_path, capsys, r"new\.jsonl, row 2 \(line 2\): the prompt has 90 tokens, and the model can take 64")
    refused(["generate", run, "--prompt", "abc" * 30], tmp_path, capsys, "prompt 1: the prompt has 90 tokens")
    prompts = ["ab", "abcabcabc" * 5, "c"]  # of other lengths in one batch: padding, which is the end of text here
    together = open_run(run).generate(prompts, max_new_tokens=8)
    assert together == [open_run(run).generate(prompt, max_new_tokens=8)[0] for prompt in prompts]


def test_names_of_classes_that_are_hard_to_write(run, tmp_path, capsys) -> None:
    names = ['a, "b"\nc', "predicted"]
    shutil.copytree(run, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    record["data"]["labels"] = names
    (tmp_path / "run" / "record.json").write_text(json.dumps(record))
    data = jsonl(tmp_path / "new.jsonl", [{"text": text, "probability_predicted": "x"} for text in TEXTS[:4]])
    found = csv_of(capsys, tmp_path / "run", "--data", data, "--keep", "all")
    plain = csv_of(capsys, run, "--data", data)
    assert {row["predicted"] for row in found} == set(names)
    for row, other in zip(found, plain, strict=True):
        assert [row[f"probability_{name}"] for name in names] == [other["probability_neg"], other["probability_pos"]]
        assert row["input_probability_predicted"] == "x"
    for row in rows_of(capsys, tmp_path / "run", "--data", data):
        assert list(row["probabilities"]) == names


def test_every_line_has_its_prediction(run, capsys, piped) -> None:
    """Other characters that Python's splitlines takes for the end of a line are part of the text."""
    lines = [f"film{mark}good" for mark in ("\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029", "\r", "\t")]
    for end in ("\n", ""):
        piped(("\n".join(lines) + end).encode())
        found = rows_of(capsys, run, "--keep", "text")
        assert [row["text"] for row in found] == lines
        assert len({row["probability"] for row in found}) <= 2


def test_rows_are_read_when_they_are_needed() -> None:
    """A file of any length: what is held at once is a chunk."""
    read: list[int] = []

    def rows() -> Iterator[tuple[int, dict]]:
        for number in range(1, 100):
            read.append(number)
            yield number, {"text": str(number)}

    chunks = Unlabeled("long", rows).chunks(3)
    assert [next(chunks).columns["text"] for _ in range(2)] == [["1", "2", "3"], ["4", "5", "6"]]
    assert next(chunks).where(1) == "long, row 8 (line 8)"
    assert len(read) == 9


@pytest.mark.parametrize("size", ["1", "6"])
def test_equal_prompts_have_samples_of_their_own(trained, capsys, piped, monkeypatch, size: str) -> None:
    monkeypatch.setattr("alloralib.cli.predict._BATCHES", 1)  # so that six prompts are six chunks, or one
    piped(b"film\n" * 6)
    found = rows_of(capsys, trained("plain text"), "--temperature", "50", "--batch-size", size, "--max-new-tokens", "6")
    assert len({row["answer"] for row in found}) > 3


def test_the_page_of_the_docs(run, capsys) -> None:
    page = (Path(__file__).parents[2] / "docs" / "predict.md").read_text(encoding="utf-8")
    commands = re.findall(r"^(?:.*\| )?allora (predict .*)$", page, re.M)
    assert len(commands) == 4
    for line in commands:
        build_parser("predict")[0].parse_args(line.split())
    (example,) = re.findall(r"```python\n(.*?)```", page, re.S)
    exec(example.replace("runs/tweets", run).replace("what a lovely day", "good film").replace("never again", "bad film"), {})
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_bfloat16(run, tmp_path, capsys) -> None:
    """The softmax is in float32, so the probabilities still sum to 1."""
    data = jsonl(tmp_path / "new.jsonl", [{"text": text} for text in TEXTS[:9]])
    for row in rows_of(capsys, run, "--data", data, "--dtype", "bfloat16"):
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-6)


def test_a_model_that_computes_nan_is_refused(run, tmp_path, capsys, monkeypatch) -> None:
    data = jsonl(tmp_path / "new.jsonl", [{"text": "film"}])
    monkeypatch.setattr("alloralib.evaluation.prediction.class_logits", lambda *a: torch.tensor([[float("nan"), 0.0]]))
    refused(["predict", run, "--data", data, "--output", str(tmp_path / "out.csv")], tmp_path, capsys, "NaN or infinite")
