"""A run and what comes after it: the verbs say of the adapter what the run's own record says."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from alloralib.cli.main import main
from alloralib.records import RunRecord

from .test_kinds import chatty, jsonl, sentences, tiny_vit, words  # noqa: F401 (fixtures)


@pytest.fixture(autouse=True)
def _warnings():
    import warnings

    with warnings.catch_warnings():
        yield


def lm_rows(tmp_path) -> str:
    return jsonl(
        tmp_path / "lm.jsonl", [{"prompt": f"{t} is", "completion": " good" if g else " bad"} for t, g in sentences(50)]
    )


@pytest.fixture
def trained(request, tiny_llama, chatty, tiny_vit, tmp_path) -> Path:  # noqa: F811
    """A finished run of the kind that the test names."""
    kind = request.param
    flags: dict = {"task": kind, "model": tiny_llama, "test_share": 0.3, "max_steps": 20}
    if kind == "classification":
        rows = [{"text": text, "label": "pos" if good else "neg"} for text, good in sentences(50)]
        flags["data"] = jsonl(tmp_path / "rows.jsonl", rows)
    elif kind == "causal-lm":
        flags |= {"data": lm_rows(tmp_path), "prompt_column": "prompt", "completion_column": "completion"}
    elif kind == "multiple-choice":
        rows = [{"prompt": f"{t} is", "choices": ["bad", "good"], "answer": int(g)} for t, g in sentences(50)]
        flags["data"] = jsonl(tmp_path / "rows.jsonl", rows)
    elif kind == "chat":
        turns = [
            ({"role": "user", "content": t}, {"role": "assistant", "content": "good" if g else "bad"}) for t, g in sentences(50)
        ]
        flags |= {"data": jsonl(tmp_path / "rows.jsonl", [{"messages": list(pair)} for pair in turns]), "model": chatty}
    else:
        import numpy as np
        from PIL import Image

        rng = np.random.default_rng(0)
        for i in range(40):
            folder = tmp_path / "images" / ("dark" if i % 2 else "light")
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray((rng.integers(0, 90, (8, 8, 3)) + (0 if i % 2 else 150)).astype("uint8")).save(folder / f"{i}.png")
        flags |= {"data": tmp_path / "images", "model": tiny_vit}
    assert main(words(tmp_path, **flags)) == 0
    return tmp_path / "run"


KINDS = ["classification", "image-classification", "causal-lm", "chat", "multiple-choice"]


@pytest.mark.parametrize("trained", KINDS, indirect=True)
def test_evaluate_says_what_the_record_says(trained: Path, tmp_path, capsys) -> None:
    record = RunRecord.read(trained / "record.json")
    capsys.readouterr()
    assert main(["evaluate", str(trained), "--json", "--items", str(tmp_path / "items.jsonl")]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["rows"] == record.data["test"]["rows"]
    for name, value in record.metrics["after"].items():
        assert result["tuned"][name] == pytest.approx(value, rel=1e-4), name
        assert result["base"][name] == pytest.approx(record.metrics["before"][name], rel=1e-4), name
    assert len((tmp_path / "items.jsonl").read_text().splitlines()) == result["rows"]


@pytest.mark.parametrize("trained", ["causal-lm"], indirect=True)
def test_generated_answers(trained: Path, capsys) -> None:
    assert main(["evaluate", str(trained), "--generate", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert 0 <= result["base"]["exact_match"] <= result["tuned"]["exact_match"] <= 1
    assert main(["generate", str(trained), "--prompt", "film story actor good is", "--max-new-tokens", "2"]) == 0
    out = capsys.readouterr().out
    assert "base" in out
    assert "tuned" in out


@pytest.mark.parametrize("trained", ["classification", "causal-lm"], indirect=True)
def test_merged_and_exported_compute_what_was_trained(trained: Path, tiny_llama: str, tmp_path) -> None:
    config = RunRecord.read(trained / "record.json").config
    auto = AutoModelForCausalLM if config["task"] == "causal-lm" else AutoModelForSequenceClassification
    more = {} if config["task"] == "causal-lm" else {"num_labels": 2, "pad_token_id": 0}
    assert main(["merge", str(trained), "--output-dir", str(tmp_path / "merged")]) == 0
    assert main(["export", str(trained), "--format", "peft", "--output", str(tmp_path / "peft")]) == 0
    batch = AutoTokenizer.from_pretrained(trained)(
        ["film story good", "the plot is bad bad"], return_tensors="pt", padding=True
    )
    batch.pop("token_type_ids", None)
    with torch.no_grad():
        base = auto.from_pretrained(tiny_llama, **more).eval()
        tuned = PeftModel.from_pretrained(base, trained).eval()(**batch).logits
        merged = auto.from_pretrained(tmp_path / "merged").eval()(**batch).logits
        again = PeftModel.from_pretrained(auto.from_pretrained(tiny_llama, **more), tmp_path / "peft").eval()(**batch).logits
    torch.testing.assert_close(merged, tuned, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(again, tuned)


@pytest.mark.parametrize("trained", ["classification"], indirect=True)
def test_inspect(trained: Path, tmp_path, capsys) -> None:
    record = RunRecord.read(trained / "record.json")
    capsys.readouterr()
    assert main(["inspect", str(trained), "--json", "--picture", str(tmp_path / "a.png")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (tmp_path / "a.png").stat().st_size > 1000
    last = record.rule[-1]
    assert last["step"] == 20
    layers = {layer["name"]: layer for layer in found["layers"]}
    assert len(layers) == len(last["layers"])
    for name, (mean, largest, smallest, _) in last["layers"].items():
        layer = next(layer for key, layer in layers.items() if name.endswith(key) or key.endswith(name))
        assert layer["mean_row"] == pytest.approx(mean, rel=1e-3)
        assert layer["max_row"] == pytest.approx(largest, rel=1e-3)
        assert layer["smallest_scale"] == pytest.approx(smallest, rel=1e-3)


@pytest.mark.parametrize("method", ["allora", "allora-od", "asf-lora", "lora-x-eta", "dora", "rslora", "pissa"])
def test_every_method_is_read_back_as_it_was_trained(tiny_llama, tmp_path, capsys, method: str) -> None:
    rows = [{"text": text, "label": "pos" if good else "neg"} for text, good in sentences(40)]
    flags = {"task": "classification", "model": tiny_llama, "data": jsonl(tmp_path / "rows.jsonl", rows), "method": method}
    targets = "q_proj,up_proj" if method in ("dora", "pissa") else "embed_tokens,q_proj,up_proj"
    assert main(words(tmp_path, **flags, test_share=0.3, max_steps=6, target_modules=targets)) == 0
    after = RunRecord.read(tmp_path / "run" / "record.json").metrics["after"]
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run"), "--json"]) == 0
    tuned = json.loads(capsys.readouterr().out)["tuned"]
    assert tuned["loss"] == pytest.approx(after["loss"], rel=1e-3)
