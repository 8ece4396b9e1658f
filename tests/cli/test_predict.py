"""`allora predict`: classes, probabilities and answers for rows without labels."""

import csv
import gzip
import io
import json
import os
import subprocess
import sys

import pyarrow
import pytest
import torch
from peft import PeftModel
from pyarrow import parquet
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from alloralib import open_run
from alloralib.cli.main import main
from alloralib.cli.predict import _progress
from alloralib.records import RunRecord

from ..trained import jsonl, sentences
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
    data = run._data
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


def test_the_probabilities_are_those_of_stock_transformers_and_peft(trained, run, tmp_path, capsys) -> None:
    """Row by row, so without padding."""
    record = RunRecord.read(trained("classification") / "record.json")
    base = AutoModelForSequenceClassification.from_pretrained(record.config["model"], num_labels=2)
    model = PeftModel.from_pretrained(base, run).eval()
    tokenizer = AutoTokenizer.from_pretrained(run)
    texts = [" ".join(TEXTS[i : i + 1 + i % 5]) for i in range(40)]  # of different lengths
    found = rows_of(capsys, run, "--data", jsonl(tmp_path / "new.jsonl", [{"text": text} for text in texts]))
    for row, text in zip(found, texts, strict=True):
        with torch.no_grad():
            expected = model(**tokenizer(text, return_tensors="pt")).logits[0].softmax(0)
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
