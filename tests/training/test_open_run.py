"""`alloralib.open_run`: the Python counterpart of the commands, on finished runs of every kind of task."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import alloralib
from alloralib import open_run
from alloralib.errors import AlloraError, ConfigError, DataError, ModelError
from alloralib.evaluation.generation import generate_answers
from alloralib.records import RunRecord

from ..trained import RUNS, jsonl


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def adapter(trained, tmp_path) -> Path:
    """A classifier's adapter as other tools write it: no record, no names of the classes."""
    shutil.copytree(trained("classification"), tmp_path / "adapter")
    (tmp_path / "adapter" / "record.json").unlink()
    shutil.rmtree(tmp_path / "adapter" / "model_config")
    return tmp_path / "adapter"


@pytest.mark.parametrize("name", RUNS)
def test_evaluate_gives_the_metrics_of_the_record(trained, name: str) -> None:
    run, record = open_run(trained(name)), RunRecord.read(trained(name) / "record.json")
    assert (run.task, run.labels) == (record.config["task"], record.data.get("labels"))
    found = run.evaluate()
    assert len(found.base.items) == len(found.tuned.items) == record.data["test"]["rows"]
    for evaluation, when in ((found.base, "before"), (found.tuned, "after")):
        assert evaluation.metrics == pytest.approx(record.metrics[when], rel=1e-4)
    assert 0 <= found.paired["p_value"] <= 1


def test_evaluate_other_rows(trained, tmp_path) -> None:
    run = open_run(trained("classification"))
    data = jsonl(tmp_path / "other.jsonl", [{"words": "film good", "verdict": "pos"}, {"words": "film bad", "verdict": "neg"}])
    found = run.evaluate(data, columns={"text": "words", "label": "verdict"}, batch_size=1)
    assert found.source == data
    assert [item["truth"] for item in found.tuned.items] == ["pos", "neg"]
    assert len(run.evaluate(rows=5).tuned.items) == 5
    assert len(run.evaluate(split="train").tuned.items) == run_record(run).data["train"]["rows"]


def run_record(run) -> RunRecord:
    return RunRecord.read(run.directory / "record.json")


def test_evaluate_generated_answers(trained) -> None:
    found = open_run(trained("causal-lm")).evaluate(generate=True)
    assert found.tuned.metrics["exact_match"] >= found.base.metrics["exact_match"]
    assert {"answer", "references", "loss"} <= found.tuned.items[0].keys()


# predict


def test_predict_texts(trained) -> None:
    run = open_run(trained("classification"))
    written = lines(trained("classification") / "predictions.jsonl")
    table = lines(trained("classification").parent / "rows.jsonl")
    items = run.evaluate(trained("classification").parent / "rows.jsonl").tuned.items
    predicted = run.predict([row["text"] for row in table], batch_size=7)
    assert [p.label for p in predicted] == [item["predicted"] for item in items]
    assert {p.label for p in predicted} == {item["predicted"] for item in written} == {"neg", "pos"}
    for prediction, item in zip(predicted, items, strict=True):
        assert list(prediction.probabilities) == ["neg", "pos"]
        assert sum(prediction.probabilities.values()) == pytest.approx(1)
        assert prediction.probabilities[prediction.label] == pytest.approx(item["probability"], abs=1e-5)
    assert run.predict([]) == []
    assert run.predict("film good")[0].probabilities == pytest.approx(run.predict([{"text": "film good"}])[0].probabilities)


def test_predict_against_the_logits_of_the_model(trained) -> None:
    run = open_run(trained("classification"))
    (found,) = run.predict(["film story actor good"])
    with torch.no_grad():
        logits = run.model(**run.processor("film story actor good", return_tensors="pt")).logits[0]
    assert list(found.probabilities.values()) == pytest.approx(logits.softmax(-1).tolist(), abs=1e-6)
    assert found.label == run.labels[int(logits.argmax())]


def test_predict_pairs(trained) -> None:
    run = open_run(trained("pairs"))
    as_tuples = run.predict([("film good", "film bad"), ("plot poor", "plot bad")])
    as_rows = run.predict([{"a": "film good", "b": "film bad"}, {"b": "plot bad", "a": "plot poor"}])
    assert [p.probabilities for p in as_tuples] == [p.probabilities for p in as_rows]
    with pytest.raises(DataError, match=r"row 2: expected 2 values \(a, b\), got 1"):
        run.predict([("film good", "film bad"), "alone"])


def test_predict_images(trained) -> None:
    run = open_run(trained("image-classification"))
    files = [trained("image-classification").parent / "images" / name for name in ("light/0.png", "dark/1.png")]
    assert [p.label for p in run.predict(files)] == ["light", "dark"]
    assert [p.label for p in run.predict([file.read_bytes() for file in files])] == ["light", "dark"]
    with pytest.raises(DataError, match=r"nowhere\.png"):
        run.predict(["nowhere.png"])


def test_a_row_that_cannot_be_predicted_is_named(trained) -> None:
    run = open_run(trained("classification"))
    with pytest.raises(DataError, match="row 2"):
        run.predict(["film good", " "])
    with pytest.raises(DataError, match="row 1"):
        run.predict([{"txt": "film good"}])
    with pytest.raises(ConfigError, match=r"no classes[\s\S]*use generate"):
        open_run(trained("causal-lm")).predict(["film"])


# generate


def test_generate_is_what_the_model_generates(trained, tiny_llama) -> None:
    run = open_run(trained("causal-lm"))
    prompts = ["film story actor good is", "plot music scene bad is"]
    tokenizer = AutoTokenizer.from_pretrained(trained("causal-lm"))
    base = AutoModelForCausalLM.from_pretrained(run.base_path)
    assert run.generate(prompts, base=True, max_new_tokens=4) == generate_answers(base, tokenizer, prompts, max_new_tokens=4)
    tuned = PeftModel.from_pretrained(base, trained("causal-lm"))
    expected = generate_answers(tuned, tokenizer, prompts, max_new_tokens=4)
    assert run.generate(prompts, max_new_tokens=4) == expected
    assert run.generate(prompts[0], max_new_tokens=4) == expected[:1]
    assert {answer.strip() for answer in expected} <= {"good", "bad"}  # as it was trained
    sampled = [run.generate(prompts, temperature=2.0, seed=seed, max_new_tokens=4) for seed in (1, 1)]
    assert sampled[0] == sampled[1]


def test_generate_chat(trained) -> None:
    run = open_run(trained("chat"))
    system, user = {"role": "system", "content": "story"}, {"role": "user", "content": "film good"}
    assert run.generate(["film good"]) == run.generate([[user]])
    assert (
        run.generate(["film good"], system="story") == run.generate([[user]], system="story") == run.generate([[system, user]])
    )


def test_what_generates_no_text(trained) -> None:
    for ask in (lambda run: run.generate(["x"]), lambda run: run.evaluate(generate=True)):
        with pytest.raises(ConfigError, match="generates no text"):
            ask(open_run(trained("classification")))
    with pytest.raises(ConfigError, match=r"no meaning for task causal-lm[\s\S]*--task chat"):
        open_run(trained("causal-lm")).generate(["x"], system="y")


# model, base, export


def test_the_model_is_loaded_once_and_the_base_anew(trained) -> None:
    run = open_run(trained("classification"))
    assert "model" not in vars(run)
    assert run.model is run.model
    assert isinstance(run.model, PeftModel)
    assert not run.model.training
    state = torch.get_rng_state()
    one, other = run.base().state_dict(), run.base().state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    assert all((torch.equal(other[key], value)) == (key != "score.weight") for key, value in one.items())


def test_an_adapter_whose_head_was_lost(trained, tmp_path) -> None:
    shutil.copytree(trained("classification"), tmp_path / "run")
    file = tmp_path / "run" / "adapter_model.safetensors"
    save_file({key: w for key, w in load_file(file).items() if "score" not in key}, file)
    with pytest.raises(ModelError, match=r"no base_model\.model\.score\.weight[\s\S]*copy"):
        open_run(tmp_path / "run").predict("film good")


@pytest.mark.parametrize("name", ["classification", "image-classification", "causal-lm", "chat", "multiple-choice"])
def test_export(trained, tmp_path, name: str) -> None:
    run = open_run(trained(name))
    proof, source = run.export(tmp_path / "merged", "merged")
    assert source == f"{min(8, run_record(run).data['test']['rows'])} test rows"
    assert proof.difference <= proof.tolerance < proof.change
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    with pytest.raises(ConfigError, match="already"):
        run.export(tmp_path / "merged", "merged")


@pytest.mark.parametrize(("name", "inputs"), [("image-classification", "images of noise"), ("chat", "built-in sentences")])
def test_an_export_without_the_data_is_compared_on_built_in_inputs(trained, tmp_path, name: str, inputs: str) -> None:
    shutil.copytree(trained(name), tmp_path / "run")
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    record["config"]["data"] = str(tmp_path / "gone.jsonl")
    (tmp_path / "run" / "record.json").write_text(json.dumps(record))
    assert open_run(tmp_path / "run").export(tmp_path / "peft", "peft")[1] == inputs


# an adapter without a record, and mistakes


def test_an_adapter_without_a_record(adapter, trained) -> None:
    run = open_run(adapter)
    assert run.config is None
    assert run.labels == ["LABEL_0", "LABEL_1"]
    data = trained("classification").parent / "rows.jsonl"
    expected = open_run(trained("classification")).evaluate(data).tuned
    assert run.evaluate(data).tuned == expected  # the data names the classes
    assert {p.label for p in run.predict(["film good", "film bad"])} <= {"LABEL_0", "LABEL_1"}
    with pytest.raises(ConfigError, match=r"no data of its own[\s\S]*give data"):
        run.evaluate()


@pytest.mark.parametrize("name", ["classification", "image-classification"])
def test_an_exported_adapter_knows_its_task_and_classes(trained, tmp_path, name: str) -> None:
    run = open_run(trained(name))
    run.export(tmp_path / "peft", "peft")
    exported = open_run(tmp_path / "peft")
    assert (exported.config, exported.task, exported.labels) == (None, run.task, run.labels)
    rows = ["film good"] if name == "classification" else [_image(trained)]
    assert exported.predict(rows) == run.predict(rows)
    (tmp_path / "peft" / "model_config" / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"damaged[\s\S]*restore"):
        open_run(tmp_path / "peft")


def _image(trained) -> Path:
    return trained("image-classification").parent / "images" / "light" / "0.png"


def test_data_with_other_classes(adapter, tmp_path) -> None:
    data = jsonl(tmp_path / "rows.jsonl", [{"text": "film", "label": label} for label in "abc"])
    with pytest.raises(ConfigError, match="3 classes, and the adapter's head has 2"):
        open_run(adapter).evaluate(data)


def test_mistakes(trained, adapter, tmp_path) -> None:
    run = trained("classification")
    for settings, match in (
        ({"task": "clasification"}, "did you mean 'classification'"),
        ({"dtype": "float8"}, "float32"),
        ({"model": str(tmp_path)}, r"no config\.json"),
    ):
        with pytest.raises(AlloraError, match=match):
            open_run(run, **settings)
    with pytest.raises(ModelError, match="no such directory"):
        open_run(tmp_path / "nowhere")
    opened = open_run(run)
    for settings, match in (
        ({"split": "tset"}, "use train, validation or test"),
        ({"split": "validation"}, "no part 'validation'"),
        ({"data": str(run.parent / "rows.jsonl"), "split": "test"}, "all rows of a file"),
        ({"data": "nowhere.csv"}, "no such file"),
        ({"columns": {"prompt": "x"}}, "no meaning"),
    ):
        with pytest.raises(AlloraError, match=match):
            opened.evaluate(**settings)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"task_type": None}))
    with pytest.raises(ConfigError, match=r"does not say what it was trained for[\s\S]*--task"):
        open_run(adapter)
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    with pytest.raises(ConfigError, match="does not name its base"):
        open_run(adapter)


def test_it_is_public() -> None:
    assert {"open_run", "OpenRun"} <= set(alloralib.__all__)
    assert isinstance(open_run.__doc__, str)


def test_the_example_in_the_docs(trained, capsys) -> None:
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    example = re.search(r"```python\n(import alloralib\n.*?)```", page, re.S)[1]
    assert "runs/trec" in example
    exec(example.replace("runs/trec", str(trained("classification"))), {})
    assert len(capsys.readouterr().out.splitlines()) == 3
