"""The model card, from a record. Its code runs as it stands, in a process that knows nothing of alloralib."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from alloralib import open_run
from alloralib.cli.main import main
from alloralib.records import RunRecord
from alloralib.reporting.card import card, write_card

from ..classifiers import save_text
from ..test_records import record
from ..trained import command, jsonl, sentences


def test_the_card_says_what_the_record_says() -> None:
    text = card(record())
    for fact in (
        "minilm-l6",
        "allora",
        "r = 4, eta = 2.0",
        "0.7500",
        "1,000 rows",
        "5,000",
        "no, yes",
        "3 rows left out",
        "step 4",
    ):
        assert fact in text, fact
    assert text.startswith("---\nbase_model: minilm-l6\n")


def test_the_base_is_what_others_call_it() -> None:
    model = {"name": "smollm2-135m", "base": "HuggingFaceTB/SmolLM2-135M-Instruct", "package": "p==1", "file": "f.gguf"}
    text = card(record(model=record().model | model))
    assert text.startswith("---\nbase_model: HuggingFaceTB/SmolLM2-135M-Instruct\n")
    assert "base, adapter = 'HuggingFaceTB/SmolLM2-135M-Instruct', " in text
    assert "the Python package `p==1` (`f.gguf`)" in text


def test_a_card_without_labels_or_with_a_method_that_peft_does_not_load(tmp_path) -> None:
    data = {k: v for k, v in record().data.items() if k not in ("labels", "majority")}
    config = {"task": "causal-lm", "model": "smollm2-135m"}
    write_card(record(data=data, config=config), tmp_path / "README.md")
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert 'AutoModelForCausalLM.from_pretrained(base, dtype="float32")' in text
    assert "Classes" not in text
    assert "import alloralib.adapters" in card(record(adapter=record().adapter | {"method": "asf-lora"}))
    assert "import alloralib" not in text


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    """A run of a BERT without a pooler in its file, by ASF-LoRA, with three classes that need quotation marks."""
    root = tmp_path_factory.mktemp("card")
    names = {"good": "it's good", "great": 'so "great"', "fine": "fine"}
    rows = [{"text": text, "label": names[text.split()[-1]]} for text, _ in sentences(90) if text.split()[-1] in names]
    flags = {"task": "classification", "method": "asf-lora", "max_steps": 3}
    assert main(command(root, model=save_text("bert", root / "model"), data=jsonl(root / "rows.jsonl", rows), **flags)) == 0
    return root / "run"


RUNS = ["classification", "pairs", "image-classification", "causal-lm", "chat", "encoder"]
RUN_ALL = """
import contextlib, io, json, sys, torch
texts = ["film good", "plot music scene story actor bad"]
for snippet in json.load(sys.stdin):
    torch.manual_seed(5)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(snippet, {})
    print(json.dumps([out.getvalue().strip(), any(name.startswith("alloralib") for name in sys.modules)]))
"""


def test_the_code_runs_as_it_stands_in_a_fresh_process(trained, encoder) -> None:
    """Texts of different length in one batch; the decoder classifier's base has no padding token of its own."""
    runs = [encoder if name == "encoder" else trained(name) for name in RUNS]
    snippets = [re.search(r"```python\n(.*?)```", (run / "README.md").read_text("utf-8"), re.S)[1] for run in runs]
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL], input=json.dumps(snippets), capture_output=True, text=True, check=True
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    for name, run, (printed, knows_alloralib) in zip(RUNS, runs, found, strict=True):
        assert knows_alloralib == (name == "encoder"), name
        opened = open_run(run)
        if opened.labels is None:
            continue
        texts = ["a first text", "a second text that is longer"]
        pairs = list(zip(texts, ["and its second", "as well"], strict=True))
        rows = {"pairs": pairs, "image-classification": [_black(run.parent)]}.get(name, texts)
        assert printed == str([prediction.label for prediction in opened.predict(rows)]), name


def _black(directory: Path) -> Path:
    from PIL import Image

    Image.new("RGB", (64, 64)).save(directory / "black.png")
    return directory / "black.png"


def test_what_the_folder_beside_the_adapter_is_good_for(trained, tmp_path) -> None:
    """transformers loads base and adapter by the adapter's directory, and its pipeline names the classes; both stay adapters
    for us. A config.json in the directory itself would make transformers take it for a whole model."""
    from transformers import AutoConfig, AutoModelForSequenceClassification, pipeline

    shutil.copytree(trained("classification"), tmp_path / "run")
    run = open_run(tmp_path / "run")
    config = AutoConfig.from_pretrained(tmp_path / "run", subfolder="model_config")
    assert config.pad_token_id == run.processor.pad_token_id
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run", config=config)
    texts = ["film good", "plot music scene story actor bad"]
    answers = pipeline("text-classification", model=model, tokenizer=run.processor)(texts, batch_size=2)
    for answer, prediction in zip(answers, run.predict(texts), strict=True):
        assert answer["label"] == prediction.label
        assert answer["score"] == pytest.approx(prediction.probabilities[prediction.label], abs=1e-6)
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_record_of_0_2_0_has_a_card() -> None:
    old = Path(__file__).parents[1] / "fixtures" / "run-0.1.0" / "classifier" / "record.json"
    assert "base, adapter = 'model', " in card(RunRecord.read(old))
