"""What the README says is what the records say, and its example runs."""

import importlib.util
import re
from pathlib import Path

from peft import PeftModel

from alloralib.records import RunRecord

from .adapters.models import llama

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(name: str) -> str:
    return re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", README, re.S)[1].strip()


def load(name: str, folder: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_demo_is_the_record() -> None:
    record = RunRecord.read(ROOT / "examples" / "records" / "tweets.json")
    before, after = record.metrics["before"], record.metrics["after"]
    text = block("demo")
    for fact in (
        f"{before['accuracy']:.3f}",
        f"{after['accuracy']:.3f}",
        f"{after['accuracy_low']:.3f} to {after['accuracy_high']:.3f}",
        f"{record.data['majority']:.3f}",
        f"{record.data['test']['rows']} test rows",
        f"{len(record.history)} steps",
    ):
        assert fact in text, fact
    assert after["accuracy_low"] > max(record.data["majority"], before["accuracy_high"])


def test_the_results_are_the_records() -> None:
    results = load("results", "examples")
    assert (ROOT / "docs" / "results.md").read_text(encoding="utf-8") == results.page()
    for name in results.NAMES:
        record = RunRecord.read(results.RECORDS / f"{name}.json")
        before, after = record.metrics["before"], record.metrics["after"]
        assert after["loss"] < before["loss"], name
        if record.config["task"] != "causal-lm":
            assert {"accuracy_low", "accuracy_high"} <= after.keys(), name


def test_the_example_runs(monkeypatch) -> None:
    lines = re.search(r"```diff\n(.*?)```", README, re.S)[1].splitlines()
    code = "\n".join(line[1:] for line in lines if not line.startswith("-"))
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", lambda name: llama())
    scope: dict = {}
    exec(code, scope)
    assert isinstance(scope["model"], PeftModel)
    assert len(lines) <= 10
