"""The classes and the rows of a run: in the base's own order, and as an earlier version held them out."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoConfig, AutoModelForSequenceClassification

from alloralib import RunConfig, open_run, train
from alloralib.cli.main import main
from alloralib.errors import Interrupted
from alloralib.records import RunRecord

from ..tiny import save
from ..trained import jsonl, sentences
from .processes import sigterm_in_step


@pytest.fixture(scope="module")
def named(tiny_llama: str, tmp_path_factory) -> str:
    """A classifier with own class names, in an order that is not the alphabet's."""
    from transformers import AutoTokenizer

    names = ["pos", "neg"]
    config = AutoConfig.from_pretrained(
        tiny_llama, id2label=dict(enumerate(names)), label2id={"pos": 0, "neg": 1}, pad_token_id=0
    )
    model = AutoModelForSequenceClassification.from_pretrained(tiny_llama, config=config)
    return save(tmp_path_factory.mktemp("named"), model, AutoTokenizer.from_pretrained(tiny_llama))


def settings(tmp_path: Path, model: str, **more: Any) -> dict[str, Any]:
    rows = [{"text": text, "label": "pos" if good else "neg"} for text, good in sentences(40)]
    return {
        "task": "classification", "model": model, "data": jsonl(tmp_path / "rows.jsonl", rows),
        "output_dir": str(tmp_path / "run"), "max_steps": 2, "batch_size": 4, "r": 2, "test_share": 0.25,
    } | more  # fmt: skip


def test_a_base_that_has_the_classes_gives_their_order(named: str, tiny_llama: str, tmp_path) -> None:
    record = train(RunConfig.of(settings(tmp_path, named)))
    assert record.data["labels"] == ["pos", "neg"]
    assert not any("own classes" in warning for warning in record.preflight["warnings"])
    probabilities = open_run(tmp_path / "run").predict(["good film"])[0].probabilities
    assert list(probabilities) == ["pos", "neg"]
    other = train(RunConfig.of(settings(tmp_path, tiny_llama, overwrite=True)))
    assert other.data["labels"] == ["neg", "pos"]


def test_other_classes_than_the_bases_are_said(named: str, tmp_path) -> None:
    rows = [{"text": text, "label": "good" if good else "bad"} for text, good in sentences(40)]
    record = train(RunConfig.of(settings(tmp_path, named) | {"data": jsonl(tmp_path / "other.jsonl", rows)}))
    assert record.data["labels"] == ["bad", "good"]
    assert "the model has own classes (pos, neg); the data has bad, good, so it gets a new head" in record.preflight["warnings"]


@pytest.mark.parametrize("way", ["command", "Python"])
def test_a_run_that_an_earlier_version_started_goes_on_with_its_rows(tiny_llama, tmp_path, way: str) -> None:
    """Its run.yaml does not say how rows were held out, and its checkpoint knows the rows."""
    given = settings(tmp_path, tiny_llama, max_steps=4, checkpoint_every=2, validation_share=0.2)
    with sigterm_in_step(3), pytest.raises(Interrupted):
        train(RunConfig.of(given | {"held_out": "random"}))
    file = tmp_path / "run.unfinished" / "run.yaml"
    written = yaml.safe_load(file.read_text())
    assert written.pop("held_out") == "random"
    file.write_text(yaml.safe_dump(written))
    if way == "command":
        assert main(["train", "--resume", "--output-dir", given["output_dir"]]) == 0
    else:
        train(RunConfig.of(given), resume=True)
    record = RunRecord.read(tmp_path / "run" / "record.json")
    assert record.config["held_out"] == "random"
    assert len(record.history) == 4
    run = open_run(tmp_path / "run")
    assert run.evaluate().tuned.metrics["accuracy"] == pytest.approx(record.metrics["after"]["accuracy"])
    predictions = (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()
    assert len(run.evaluate().tuned.items) == len([json.loads(line) for line in predictions])
