"""What the base's file lacks is trained whole, saved, and the same again in stock PEFT, with any seed. All other tools see the
names of the classes, the padding and the public name of the base."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from alloralib import open_run
from alloralib.cli.main import main
from alloralib.errors import MergeError, ModelError
from alloralib.export.merged import export_merged
from alloralib.export.peft import export_peft

from ..classifiers import IMAGES, TEXTS, save_images, save_text
from ..cli.commands import refused
from ..trained import command, jsonl, make_images, sentences

RUNS = [*TEXTS, *IMAGES]
CLASSES = ["bad", "fine", "good"]  # of the texts; none of the bases has three classes of these names


def rows() -> list[dict[str, str]]:
    kinds = {"good": "good", "great": "good", "fine": "fine", "bad": "bad", "awful": "bad", "poor": "bad"}
    return [{"text": text, "label": kinds[text.split()[-1]]} for text, _ in sentences(60)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A directory with a run of every architecture: NAME/model and NAME/run. Three classes of texts, two of images."""
    root = tmp_path_factory.mktemp("heads")
    data, images = jsonl(root / "rows.jsonl", rows()), make_images(root / "images")
    for name in RUNS:
        text = name in TEXTS
        model = (save_text if text else save_images)(name, root / name / "model")
        flags = {"task": "classification" if text else "image-classification", "data": data if text else images}
        flags |= {"target_modules": "convolution"} if name == "resnet" else {}
        assert main(command(root / name, model=model, max_steps=3, test_share=0.2, **flags)) == 0, name
    return root


def config(run: Path, file: str = "adapter_config.json") -> dict:
    return json.loads((run / file).read_text())


@pytest.mark.parametrize("name", RUNS)
def test_what_is_new_is_trained_whole_and_not_adapted(runs, name: str) -> None:
    run = runs / name / "run"
    whole = (TEXTS | IMAGES)[name][1]
    named = config(run)["modules_to_save"]
    assert set(named) - {"classifier", "score"} <= whole <= set(named)
    assert len(named) == len(set(named))
    saved = load_file(run / "adapter_model.safetensors")
    base = open_run(run).base()
    for key in base.state_dict():
        is_whole = any(key.startswith(module + ".") for module in whole)
        assert (f"base_model.model.{key}" in saved) == is_whole, key
    adapted = {key for key in saved if ".lora_" in key}
    assert adapted
    assert not any(key.startswith(f"base_model.model.{module}.") for key in adapted for module in whole)
    assert all((tensor != 0).any() for key, tensor in saved.items() if ".lora_B" in key) or name == "levit"


RELOAD = """
import json, sys, torch
from pathlib import Path
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForImageClassification, AutoModelForSequenceClassification
root, found = Path(sys.argv[1]), {}
for name in json.loads(sys.argv[2]):
    run = root / name / "run"
    config = AutoConfig.from_pretrained(run, subfolder="model_config")
    text = config.architectures[0].endswith("SequenceClassification")
    auto = AutoModelForSequenceClassification if text else AutoModelForImageClassification
    inputs = torch.load(root / name / "inputs.pt")
    for seed in (1, 2):
        torch.manual_seed(seed)
        base = json.loads((run / "adapter_config.json").read_text())["base_model_name_or_path"]
        model = auto.from_pretrained(base, config=config, ignore_mismatched_sizes=True)
        with torch.no_grad():
            found[f"{name} {seed}"] = PeftModel.from_pretrained(model, run).eval()(**inputs).logits
assert not any(name.startswith("alloralib") for name in sys.modules)
save_file(found, root / "found.safetensors")
"""


def test_stock_peft_gives_the_same_logits_in_a_fresh_process_with_any_seed(runs) -> None:
    expected = {}
    for name in RUNS:
        run = open_run(runs / name / "run")
        texts = ["film good music", "plot", "awful scene story actor"]
        if name in TEXTS:
            inputs = dict(run.processor(texts, padding=True, return_tensors="pt"))
            inputs = {key: inputs[key] for key in ("input_ids", "attention_mask")}
        else:
            inputs = run.data.example_inputs(3)[0][0]
        torch.save(inputs, runs / name / "inputs.pt")
        with torch.no_grad():
            expected[name] = run.model(**inputs).logits
    subprocess.run([sys.executable, "-c", RELOAD, str(runs), json.dumps(RUNS)], check=True)
    found = load_file(runs / "found.safetensors")
    for name in RUNS:
        for seed in (1, 2):
            atol = 0 if name in TEXTS else 1e-6  # two processes may compute convolutions in another order
            torch.testing.assert_close(found[f"{name} {seed}"], expected[name], rtol=0, atol=atol, msg=f"{name}, seed {seed}")


@pytest.mark.parametrize("name", ["bert", "distilbert", "deberta-v2", "albert", "modernbert", "llama", "resnet", "levit"])
def test_merge_and_export(runs, name: str, tmp_path) -> None:
    """Both are proven with bases whose new weights differ; the names of the classes go with them."""
    run = open_run(runs / name / "run")
    for form in ("merged", "peft"):
        proof, _ = run.export(tmp_path / form, form)
        assert proof.difference <= 1e-5 < proof.change
    classes = CLASSES if name in TEXTS else ["dark", "light"]
    assert config(tmp_path / "merged", "config.json")["id2label"] == {str(i): label for i, label in enumerate(classes)}
    exported = open_run(tmp_path / "peft")
    assert (exported.task, exported.labels) == (run.task, classes)
    assert (tmp_path / "peft" / "record.json").exists() is False
    data = run.config.data
    assert exported.evaluate(data).tuned == run.evaluate(data).tuned


def test_a_pooler_that_was_not_saved_is_no_longer_hidden_by_a_seed(runs, tmp_path, capsys) -> None:
    """A run as 0.2.0 wrote it. It opens with what its seed gives; nothing is exported, and the proof itself would notice."""
    run = tmp_path / "run"
    shutil.copytree(runs / "bert" / "run", run)
    weights, settings = load_file(run / "adapter_model.safetensors"), config(run)
    save_file({key: w for key, w in weights.items() if "pooler" not in key}, run / "adapter_model.safetensors")
    (run / "adapter_config.json").write_text(json.dumps(settings | {"modules_to_save": ["classifier", "score"]}))
    opened = open_run(run)
    assert opened.predict("film good") == open_run(run).predict("film good")
    assert "neither the adapter nor the file of its base has bert.pooler.dense" in capsys.readouterr().err
    refused(["export", str(run), "--format", "peft", "--output", str(tmp_path / "out")], tmp_path, capsys, "random values")
    for export in (export_peft, export_merged):
        with pytest.raises(MergeError, match="differ from the trained"):
            export(run, tmp_path / "out", load_base=opened.base, inputs=opened.data.example_inputs()[0])
    (run / "record.json").unlink()
    with pytest.raises(ModelError, match=r"random values[\s\S]*train again"):
        open_run(run).predict("film good")


@pytest.mark.parametrize("name", ["vit", "convnext", "resnet", "albert"])
def test_sixteen_bits_and_gradient_checkpointing(runs, name: str, tmp_path, capsys) -> None:
    """Images come in float32, and the first convolution wants the dtype of its weights."""
    written = open_run(runs / name / "run").config
    flags = {"task": written.task, "model": written.model, "data": written.data, "max_steps": 2, "test_share": 0.2}
    words = command(tmp_path, **flags, target_modules=",".join(written.target_modules) if name == "resnet" else "all-linear")
    if name != "vit":
        message = r"does not support it[\s\S]*leave it out"
        refused([*words, "--gradient-checkpointing"], tmp_path, capsys, message)
    assert main([*words, "--dtype", "bfloat16"]) == 0
    assert config(tmp_path / "run", "model_config/config.json")["dtype"] == "bfloat16"
    assert main(["evaluate", str(tmp_path / "run")]) == 0


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "deberta-v2", "albert", "modernbert", "llama"])
def test_the_number_of_classes_of_an_adapter_of_another_tool(runs, name: str, tmp_path) -> None:
    """Its head is not simply the last of the modules that were trained whole."""
    shutil.copytree(runs / name / "run", tmp_path / "adapter")
    (tmp_path / "adapter" / "record.json").unlink()
    shutil.rmtree(tmp_path / "adapter" / "model_config")
    assert open_run(tmp_path / "adapter").labels == ["LABEL_0", "LABEL_1", "LABEL_2"]


@pytest.mark.parametrize("name", ["bert", "distilbert", "modernbert", "gpt2", "swin", "convnext", "resnet", "levit"])
def test_the_reloaded_run_gives_the_metrics_that_training_ended_with(runs, name: str) -> None:
    """Nothing else moved while training, such as the running statistics of batch normalization."""
    run = open_run(runs / name / "run")
    recorded = config(runs / name / "run", "record.json")["metrics"]
    found = run.evaluate()
    for evaluation, when in ((found.base, "before"), (found.tuned, "after")):
        assert evaluation.metrics["loss"] == pytest.approx(recorded[when]["loss"], rel=1e-5)
