"""Real models and real text from PyPI, through the commands that a user runs."""

import subprocess
import sys

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from alloralib.adapters.layers import Linear
from alloralib.cli.main import main
from alloralib.data.table import read_table
from alloralib.records import RunRecord
from alloralib.training.models import load_model, load_tokenizer, locate

pytestmark = pytest.mark.real

STOCK = """
import sys
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification
base, adapter, inputs, output = sys.argv[1:]
model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3, dtype=torch.float32)
model = PeftModel.from_pretrained(model, adapter).eval()
assert not any(name.startswith("alloralib") for name in sys.modules), "this has to be PEFT alone"
model.config.pad_token_id = 2
with torch.no_grad():
    save_file({"logits": model(**load_file(inputs)).logits}, output)
"""


@pytest.fixture(autouse=True)
def _warnings():
    import warnings

    with warnings.catch_warnings():
        yield


def test_the_converted_model_speaks() -> None:
    path = locate("smollm2-135m")
    model = load_model(path, task="causal-lm", labels=None, dtype=torch.float32, pad_token_id=None)
    tokenizer = load_tokenizer(path)
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    answer = tokenizer.decode(model.generate(**prompt, max_new_tokens=4, do_sample=False)[0])
    assert "Paris" in answer
    assert tokenizer.chat_template


def test_the_demo_in_small_leaves_an_adapter_that_stock_peft_loads_with_equal_logits(tmp_path) -> None:
    words = ["train", "--config", "examples/tweets.yaml", "--output-dir", str(tmp_path / "run")]
    assert main([*words, "--max-steps", "3", "--train-rows", "200", "--test-rows", "8"]) == 0
    base = locate("smollm2-135m")
    tokenizer = load_tokenizer(base)
    tweets = read_table("tweets").columns["text"][:6]
    batch = dict(tokenizer(tweets, return_tensors="pt", padding=True))
    save_file(batch, tmp_path / "batch.safetensors")

    model = load_model(base, task="classification", labels=["a", "b", "c"], dtype=torch.float32, pad_token_id=2)
    ours = PeftModel.from_pretrained(model, tmp_path / "run", is_trainable=True).eval()
    assert any(isinstance(m, Linear) and m.lora_variant for m in ours.modules())
    with torch.no_grad():
        expected = ours(**batch).logits
        with ours.disable_adapter():
            untouched = ours(**batch).logits
    arguments = [base, str(tmp_path / "run"), str(tmp_path / "batch.safetensors"), str(tmp_path / "out.safetensors")]
    done = subprocess.run([sys.executable, "-c", STOCK, *arguments], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    theirs = load_file(tmp_path / "out.safetensors")["logits"]
    torch.testing.assert_close(theirs, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(untouched, expected, atol=1e-2)

    # merged and exported: the verbs prove it on the run's own test rows, and here once more
    assert main(["merge", str(tmp_path / "run"), "--output-dir", str(tmp_path / "merged")]) == 0
    assert main(["export", str(tmp_path / "run"), "--format", "peft", "--output", str(tmp_path / "exported")]) == 0
    names = ["negative", "neutral", "positive"]
    merged = load_model(str(tmp_path / "merged"), task="classification", labels=names, dtype=torch.float32, pad_token_id=2)
    exported = load_model(base, task="classification", labels=names, dtype=torch.float32, pad_token_id=2)
    exported = PeftModel.from_pretrained(exported, tmp_path / "exported").eval()
    with torch.no_grad():
        torch.testing.assert_close(merged.eval()(**batch).logits, expected, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(exported(**batch).logits, expected, rtol=1e-4, atol=1e-4)


def test_minilm_learns_sentiment(tmp_path) -> None:
    words = [
        "train", "--task", "classification", "--model", "minilm-l6", "--data", "tweets", "--output-dir", str(tmp_path / "run"),
        "--max-steps", "40", "--train-rows", "2000", "--test-rows", "300", "--learning-rate", "4e-3",
    ]  # fmt: skip
    assert main(words) == 0
    record = RunRecord.read(tmp_path / "run" / "record.json")
    after = record.metrics["after"]
    assert after["accuracy_low"] > record.baselines["majority"]["accuracy"]
    assert after["accuracy_low"] > record.metrics["before"]["accuracy_high"]
    assert record.data["removed"]["train"] > 0
