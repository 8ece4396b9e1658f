"""Every kind of task from the command line to an adapter, on tiny models; and what is malformed, refused with its place."""

import json
import random

import numpy as np
import pytest
from peft import PeftConfig
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from alloralib.cli.main import main
from alloralib.records import RunRecord

from .test_train import contents, refused

CHATML = (
    "{% for m in messages %}{{ m['role'] + ' ' + m['content'] + ' </s> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant ' }}{% endif %}"
)


@pytest.fixture(autouse=True)
def _warnings():
    import warnings

    with warnings.catch_warnings():
        yield


@pytest.fixture(scope="session")
def chatty(tiny_llama, tmp_path_factory) -> str:
    """The tiny Llama, with a chat template that has no generation markers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = tmp_path_factory.mktemp("models") / "chatty"
    AutoModelForCausalLM.from_pretrained(tiny_llama).save_pretrained(path)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="session")
def tiny_vit(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("models") / "vit"
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    ViTForImageClassification(ViTConfig(**shape, image_size=8, patch_size=4)).save_pretrained(path)
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(path)
    return str(path)


def jsonl(path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def words(tmp_path, **flags) -> list[str]:
    flags = {"output_dir": tmp_path / "run", "r": 2, "max_steps": 30, "batch_size": 8, "learning_rate": 0.02} | flags
    return ["train", *(word for k, v in flags.items() for word in ("--" + k.replace("_", "-"), str(v)))]


def record(tmp_path) -> RunRecord:
    return RunRecord.read(tmp_path / "run" / "record.json")


def predictions(tmp_path) -> list[dict]:
    return [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]


ADJECTIVES = ["good", "great", "fine", "bad", "awful", "poor"]


def sentences(n: int) -> list[tuple[str, bool]]:
    rng = random.Random(1)
    made = {}
    while len(made) < n:
        adjective = rng.choice(ADJECTIVES)
        made[" ".join([*rng.sample(["film", "story", "actor", "plot", "music", "scene"], 3), adjective])] = adjective
    return [(text, ADJECTIVES.index(adjective) < 3) for text, adjective in made.items()]


def test_pairs(tiny_llama, tmp_path) -> None:
    rows = [
        {"a": text, "b": other, "same": ["no", "yes"][good == other_good]}
        for (text, good), (other, other_good) in zip(sentences(60), sentences(60)[::-1], strict=True)
    ]
    data = jsonl(tmp_path / "pairs.jsonl", rows)
    flags = {"task": "classification", "text_column": "a", "text_pair_column": "b", "label_column": "same"}
    assert main(words(tmp_path, model=tiny_llama, data=data, **flags)) == 0
    kept = record(tmp_path)
    assert kept.data["labels"] == ["no", "yes"]
    losses = [entry["loss"] for entry in kept.history]
    assert sum(losses[-10:]) < sum(losses[:10])
    assert len(predictions(tmp_path)) == kept.data["test"]["rows"]
    assert {"predicted", "truth", "probability"} <= predictions(tmp_path)[0].keys()


@pytest.mark.parametrize("form", ["openai", "sharegpt"])
def test_chat_learns_the_answers(chatty, tmp_path, form: str) -> None:
    rows = []
    for text, good in sentences(60):
        turns = [("user", text), ("assistant", "good" if good else "bad"), ("user", "and the music"), ("assistant", "fine")]
        if form == "openai":
            rows.append({"messages": [{"role": role, "content": said} for role, said in turns]})
        else:
            names = {"user": "human", "assistant": "gpt"}
            rows.append({"conversations": [{"from": names[role], "value": said} for role, said in turns]})
    data = jsonl(tmp_path / "chat.jsonl", rows)
    extra = {"messages_column": "conversations"} if form == "sharegpt" else {}
    assert main(words(tmp_path, task="chat", model=chatty, data=data, **extra)) == 0
    metrics = record(tmp_path).metrics
    assert metrics["after"]["loss"] < metrics["before"]["loss"] - 0.3
    rows_tested = record(tmp_path).data["test"]["rows"]
    assert metrics["after"]["tokens"] == 4 * rows_tested  # two answers of one word, and the end of either


def test_multiple_choice(tiny_llama, tmp_path) -> None:
    rows = [
        {"prompt": f"{text} is ", "choices": ["bad", "good"], "answer": "good" if good else "bad"}
        for text, good in sentences(80)
    ]
    data = jsonl(tmp_path / "choices.jsonl", rows)
    flags = {"task": "multiple-choice", "test_share": 0.3, "validation_share": 0.2, "evaluate_every": 10}
    assert main(words(tmp_path, model=tiny_llama, data=data, **flags)) == 0
    kept = record(tmp_path)
    assert kept.metrics["after"]["loss"] < kept.metrics["before"]["loss"] - 0.2
    assert kept.metrics["after"]["chance"] == 0.5
    assert [entry["step"] for entry in kept.validation["history"]] == [10, 20, 30]
    assert len(predictions(tmp_path)) == kept.data["test"]["rows"]


def test_images(tiny_vit, tmp_path) -> None:
    rng = np.random.default_rng(0)
    for i in range(48):
        folder = tmp_path / "images" / ("dark" if i % 2 else "light")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 90, (8, 8, 3)) + (0 if i % 2 else 150)
        Image.fromarray(pixels.astype("uint8")).save(folder / f"{i}.png")
    data = str(tmp_path / "images")
    assert main(words(tmp_path, task="image-classification", model=tiny_vit, data=data, test_share=0.25)) == 0
    kept = record(tmp_path)
    assert kept.data["labels"] == ["dark", "light"]
    assert kept.metrics["after"]["accuracy"] == 1.0
    assert PeftConfig.from_pretrained(tmp_path / "run").modules_to_save == ["classifier"]
    (tmp_path / "images" / "dark" / "1.png").write_text("not an image")
    run_again = words(tmp_path, task="image-classification", model=tiny_vit, data=data, output_dir=tmp_path / "second")
    assert main(run_again) == 2
    assert not (tmp_path / "second").exists()


def test_a_registered_set_from_a_directory(tiny_llama, tmp_path, capsys) -> None:
    """Its task, columns and labels are known; a set that is not there is looked for by name."""
    lines = "".join(f"{text};{'joy' if good else 'sadness'}\n" for text, good in sentences(60))
    folder = tmp_path / "sets" / "emotion"
    folder.mkdir(parents=True)
    (folder / "train.txt").write_text("text;label_name\n" + lines)
    flags = {"model": tiny_llama, "data": "emotion", "data_dir": tmp_path / "sets", "max_steps": 2}
    assert main(words(tmp_path, **flags)) == 0
    assert record(tmp_path).config["task"] == "classification"
    assert record(tmp_path).data["labels"] == ["sadness", "joy", "love", "anger", "fear", "surprise"]
    refused(words(tmp_path, **(flags | {"data": "trec", "output_dir": tmp_path / "other"})), tmp_path, capsys, "trec")
    refused(words(tmp_path, **(flags | {"data": "emotoin", "task": "classification"})), tmp_path, capsys, "data_dir")


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
def test_malformed_rows_are_refused_with_their_place_and_nothing_is_written(chatty, tmp_path, capsys, name: str) -> None:
    file, content, match = MALFORMED[name]
    (tmp_path / file).write_bytes(content)
    task = "chat" if b"messages" in content else "classification"
    message = refused(words(tmp_path, task=task, model=chatty, data=tmp_path / file), tmp_path, capsys, match)
    assert file in message


def test_a_model_without_a_chat_template(tiny_llama, tmp_path, capsys) -> None:
    rows = [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "good"}]} for text, _ in sentences(9)
    ]
    data = jsonl(tmp_path / "chat.jsonl", rows)
    refused(words(tmp_path, task="chat", model=tiny_llama, data=data), tmp_path, capsys, "template")
    assert contents(tmp_path) == {"chat.jsonl"}


def test_a_quantized_model_is_trained_as_it_is(tiny_llama, tmp_path, capsys) -> None:
    """The same command on a model that was stored in 4 bits; what cannot be done with it says so."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    AutoModelForCausalLM.from_pretrained(tiny_llama, quantization_config=config).save_pretrained(tmp_path / "nf4")
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(tmp_path / "nf4")
    rows = [{"prompt": f"{text} is", "completion": " good" if good else " bad"} for text, good in sentences(40)]
    flags = {"task": "causal-lm", "prompt_column": "prompt", "completion_column": "completion", "model": tmp_path / "nf4"}
    assert main(words(tmp_path, data=jsonl(tmp_path / "rows.jsonl", rows), **flags)) == 0
    metrics = record(tmp_path).metrics
    assert metrics["after"]["loss"] < metrics["before"]["loss"] - 0.2
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run"), "--json"]) == 0
    tuned = json.loads(capsys.readouterr().out)["tuned"]
    assert tuned["loss"] == pytest.approx(metrics["after"]["loss"], rel=1e-3)
    merge = ["merge", str(tmp_path / "run"), "--output-dir", str(tmp_path / "merged")]
    refused(merge, tmp_path, capsys, "the base is quantized")
    assert main([*merge, "--model", tiny_llama]) == 0
