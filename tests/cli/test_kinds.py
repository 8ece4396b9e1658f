"""`allora train` on every kind of task, with tiny models; and malformed data, refused with its place."""

import json
import shutil
from pathlib import Path

import pytest
from peft import PeftConfig

from alloralib.cli.main import main
from alloralib.records import RunRecord

from ..trained import command, jsonl, make_chat_model, sentences
from .commands import contents, refused


def record(run: Path) -> RunRecord:
    return RunRecord.read(run / "record.json")


def predictions(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]


def test_pairs(trained) -> None:
    kept = record(trained("pairs"))
    assert kept.data["labels"] == ["no", "yes"]
    losses = [entry["loss"] for entry in kept.history]
    assert sum(losses[-10:]) < sum(losses[:10])
    answers = predictions(trained("pairs"))
    assert len(answers) == kept.data["test"]["rows"]
    assert {"predicted", "truth", "probability"} <= answers[0].keys()


@pytest.mark.parametrize("form", ["chat", "sharegpt"])
def test_chat_learns_the_answers(trained, form: str) -> None:
    kept = record(trained(form))
    assert kept.metrics["after"]["loss"] < kept.metrics["before"]["loss"] - 0.3
    # two answers of one word, and the token that ends each of them
    assert kept.metrics["after"]["tokens"] == 4 * kept.data["test"]["rows"]


def test_multiple_choice(trained) -> None:
    kept = record(trained("multiple-choice"))
    assert kept.metrics["after"]["loss"] < kept.metrics["before"]["loss"] - 0.2
    assert kept.metrics["after"]["chance"] == 0.5
    assert [entry["step"] for entry in kept.validation["history"]] == [10, 20, 30]
    assert len(predictions(trained("multiple-choice"))) == kept.data["test"]["rows"]


def test_images(trained, tmp_path, capsys) -> None:
    run = trained("image-classification")
    kept = record(run)
    assert kept.data["labels"] == ["dark", "light"]
    assert kept.metrics["after"]["accuracy"] == 1.0
    assert PeftConfig.from_pretrained(run).modules_to_save == ["classifier"]
    shutil.copytree(kept.config["data"], tmp_path / "images")
    (tmp_path / "images" / "dark" / "1.png").write_text("not an image")
    flags = {"task": "image-classification", "model": kept.config["model"], "data": tmp_path / "images", "test_share": 0.25}
    refused(command(tmp_path, **flags), tmp_path, capsys, "1.png")


def test_a_registered_set_from_a_directory(tiny_llama, tmp_path, capsys) -> None:
    """Its task, columns and labels are known. An unknown set is an error that names it."""
    lines = "".join(f"{text};{'joy' if good else 'sadness'}\n" for text, good in sentences(60))
    folder = tmp_path / "sets" / "emotion"
    folder.mkdir(parents=True)
    (folder / "train.txt").write_text("text;label_name\n" + lines)
    flags = {"model": tiny_llama, "data": "emotion", "data_dir": tmp_path / "sets", "max_steps": 2}
    assert main(command(tmp_path, **flags)) == 0
    assert record(tmp_path / "run").config["task"] == "classification"
    assert record(tmp_path / "run").data["labels"] == ["sadness", "joy", "love", "anger", "fear", "surprise"]
    refused(command(tmp_path, **(flags | {"data": "trec", "output_dir": tmp_path / "other"})), tmp_path, capsys, "trec")
    refused(command(tmp_path, **(flags | {"data": "emotoin", "task": "classification"})), tmp_path, capsys, "data_dir")


@pytest.fixture(scope="module")
def chat_model(tiny_llama, tmp_path_factory) -> str:
    return make_chat_model(tiny_llama, tmp_path_factory.mktemp("chat"))


MALFORMED = {
    "bad encoding": ("rows.csv", b"text,label\ngood film,pos\nna\xefve film,neg\n", "line 3|row 2"),
    "missing column": ("rows.csv", b"text,sentiment\ngood film,pos\nbad film,neg\n", "no column 'label'"),
    "ragged": ("rows.csv", b"text,label\ngood film,pos\nbad film\n", "row 2"),
    "truncated line": ("rows.jsonl", b'{"text": "good", "label": "pos"}\n{"text": "bad", "lab', "row 2|line 2"),
    "long line": ("rows.jsonl", b'{"text": "' + b"good " * 300_000 + b'", "label": "pos"}\n', "line 1"),
    "empty": ("rows.csv", b"", "rows.csv"),
    "unknown role": ("rows.jsonl", b'{"messages": [{"role": "usr", "content": "good"}]}\n', "'usr'"),
    "no answer": ("rows.jsonl", b'{"messages": [{"role": "user", "content": "good"}]}\n', "row 1"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_rows_are_refused_with_their_place_and_nothing_is_written(chat_model, tmp_path, capsys, name) -> None:
    file, content, match = MALFORMED[name]
    (tmp_path / file).write_bytes(content)
    task = "chat" if b"messages" in content else "classification"
    message = refused(command(tmp_path, task=task, model=chat_model, data=tmp_path / file), tmp_path, capsys, match)
    assert file in message


def test_a_model_without_a_chat_template(tiny_llama, tmp_path, capsys) -> None:
    rows = [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "good"}]} for text, _ in sentences(9)
    ]
    data = jsonl(tmp_path / "chat.jsonl", rows)
    refused(command(tmp_path, task="chat", model=tiny_llama, data=data), tmp_path, capsys, "template")
    assert contents(tmp_path) == {"chat.jsonl"}


def test_a_quantized_model_is_trained_as_it_is(tiny_llama, tmp_path, capsys) -> None:
    """The same command on a model that was stored in 4 bits. It cannot be merged, and the error says so."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    AutoModelForCausalLM.from_pretrained(tiny_llama, quantization_config=config).save_pretrained(tmp_path / "nf4")
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(tmp_path / "nf4")
    rows = [{"prompt": f"{text} is", "completion": " good" if good else " bad"} for text, good in sentences(40)]
    flags = {"task": "causal-lm", "prompt_column": "prompt", "completion_column": "completion", "model": tmp_path / "nf4"}
    assert main(command(tmp_path, data=jsonl(tmp_path / "rows.jsonl", rows), **flags)) == 0
    metrics = record(tmp_path / "run").metrics
    assert metrics["after"]["loss"] < metrics["before"]["loss"] - 0.2
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run"), "--json"]) == 0
    tuned = json.loads(capsys.readouterr().out)["tuned"]
    assert tuned["loss"] == pytest.approx(metrics["after"]["loss"], rel=1e-3)
    merge = ["merge", str(tmp_path / "run"), "--output-dir", str(tmp_path / "merged")]
    refused(merge, tmp_path, capsys, "the base is quantized")
    refused([*merge, "--model", tiny_llama], tmp_path, capsys, r"not the base model.*\n.*--allow-other-base")
    assert main([*merge, "--model", tiny_llama, "--allow-other-base"]) == 0
