"""The other commands on finished runs: what they say of an adapter is what the run's own record says."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from alloralib.cli.main import main
from alloralib.records import RunRecord

from ..trained import command, jsonl, sentences
from .commands import json_of

KINDS = ["classification", "pairs", "image-classification", "causal-lm", "plain text", "chat", "sharegpt", "multiple-choice"]


@pytest.mark.parametrize("name", KINDS)
def test_evaluate_says_what_the_record_says(trained, tmp_path, capsys, name: str) -> None:
    run = trained(name)
    record = RunRecord.read(run / "record.json")
    result = json_of(capsys, ["evaluate", str(run), "--items", str(tmp_path / "items.jsonl")])
    assert result["rows"] == record.data["test"]["rows"]
    for key, value in record.metrics["after"].items():
        assert result["tuned"][key] == pytest.approx(value, rel=1e-4), key
        assert result["base"][key] == pytest.approx(record.metrics["before"][key], rel=1e-4), key
    assert len((tmp_path / "items.jsonl").read_text().splitlines()) == result["rows"]


def test_generated_answers(trained, capsys) -> None:
    run = str(trained("causal-lm"))
    result = json_of(capsys, ["evaluate", run, "--generate"])
    assert 0 <= result["base"]["exact_match"] <= result["tuned"]["exact_match"] <= 1
    assert main(["generate", run, "--prompt", "film story actor good is", "--max-new-tokens", "2"]) == 0
    out = capsys.readouterr().out
    assert "base" in out
    assert "tuned" in out


@pytest.mark.parametrize("name", ["classification", "causal-lm"])
def test_merged_and_exported_compute_what_was_trained(trained, tiny_llama: str, tmp_path: Path, name: str) -> None:
    run = trained(name)
    auto = AutoModelForCausalLM if name == "causal-lm" else AutoModelForSequenceClassification
    more = {} if name == "causal-lm" else {"num_labels": 2, "pad_token_id": 0}
    assert main(["merge", str(run), "--output-dir", str(tmp_path / "merged")]) == 0
    assert main(["export", str(run), "--format", "peft", "--output", str(tmp_path / "peft")]) == 0
    batch = AutoTokenizer.from_pretrained(run)(["film story good", "the plot is bad bad"], return_tensors="pt", padding=True)
    batch.pop("token_type_ids", None)
    with torch.no_grad():
        base = auto.from_pretrained(tiny_llama, **more).eval()
        tuned = PeftModel.from_pretrained(base, run).eval()(**batch).logits
        merged = auto.from_pretrained(tmp_path / "merged").eval()(**batch).logits
        again = PeftModel.from_pretrained(auto.from_pretrained(tiny_llama, **more), tmp_path / "peft").eval()(**batch).logits
    torch.testing.assert_close(merged, tuned, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(again, tuned)


def test_inspect(trained, tmp_path, capsys) -> None:
    record = RunRecord.read(trained("classification") / "record.json")
    found = json_of(capsys, ["inspect", str(trained("classification")), "--picture", str(tmp_path / "a.png")])
    assert (tmp_path / "a.png").stat().st_size > 1000
    last = record.rule[-1]
    assert last["step"] == record.config["max_steps"]
    layers = {layer["name"]: layer for layer in found["layers"]}
    assert len(layers) == len(last["layers"])
    for name, (mean, largest, smallest, _) in last["layers"].items():
        layer = next(layer for key, layer in layers.items() if name.endswith(key) or key.endswith(name))
        assert layer["mean_row"] == pytest.approx(mean, rel=1e-3)
        assert layer["max_row"] == pytest.approx(largest, rel=1e-3)
        assert layer["smallest_scale"] == pytest.approx(smallest, rel=1e-3)


METHODS = ["allora", "allora-d", "allora-od", "asf-lora", "lora-x-eta", "lora", "dora", "rslora", "lora-plus", "pissa"]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_trained_and_read_back_as_it_was_trained(tiny_llama, tmp_path, capsys, method: str) -> None:
    rows = [{"text": text, "label": "pos" if good else "neg"} for text, good in sentences(40)]
    flags = {"task": "classification", "model": tiny_llama, "data": jsonl(tmp_path / "rows.jsonl", rows), "method": method}
    targets = "q_proj,up_proj" if method in ("dora", "pissa") else "embed_tokens,q_proj,up_proj"
    assert main(command(tmp_path, **flags, test_share=0.3, max_steps=4, target_modules=targets)) == 0
    record = RunRecord.read(tmp_path / "run" / "record.json")
    assert record.adapter["method"] == method
    assert len(record.history) == 4
    tuned = json_of(capsys, ["evaluate", str(tmp_path / "run")])["tuned"]
    assert tuned["loss"] == pytest.approx(record.metrics["after"]["loss"], rel=1e-3)


def test_items_have_the_answers_of_both_models(trained, tmp_path, capsys) -> None:
    json_of(capsys, ["evaluate", str(trained("classification")), "--items", str(tmp_path / "items.jsonl")])
    items = [json.loads(line) for line in (tmp_path / "items.jsonl").read_text().splitlines()]
    predictions = (trained("classification") / "predictions.jsonl").read_text().splitlines()
    for item, line in zip(items, predictions, strict=True):
        written = json.loads(line)
        assert item["tuned"] == written | {"probability": pytest.approx(written["probability"], rel=1e-4)}
        assert item["base"]["truth"] == written["truth"]
