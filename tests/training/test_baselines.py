"""The baselines of a run: their rows, their numbers in the record, and what is printed."""

import pytest

from alloralib.cli.main import main
from alloralib.records import RunRecord
from alloralib.training.baselines import compute_baselines, planned_rows
from alloralib.training.callbacks import StopOnSignal
from alloralib.training.config import RunConfig
from alloralib.training.directory import RunDirectory
from alloralib.training.prepare import prepare
from alloralib.training.trainer import RunTrainer

from ..trained import command, jsonl, make_image_model, make_images, sentences


@pytest.fixture
def rows(tmp_path) -> str:
    return jsonl(tmp_path / "rows.jsonl", [{"text": t, "label": "pos" if good else "neg"} for t, good in sentences(80)])


def trainer_of(tmp_path, model: str, data: str, **settings) -> RunTrainer:
    values = {"task": "classification", "model": model, "data": data, "output_dir": str(tmp_path / "run"), "r": 2}
    return RunTrainer(prepare(RunConfig.of(values | settings), RunDirectory(tmp_path / "run"), StopOnSignal()))


def test_a_classifier_is_compared_with_simpler_tools(tiny_llama, rows, tmp_path, capsys) -> None:
    assert main(command(tmp_path, task="classification", model=tiny_llama, data=rows, test_share=0.3)) == 0
    record = RunRecord.read(tmp_path / "run" / "record.json")
    assert set(record.baselines) == {"majority", "tf-idf", "linear probe"}
    assert record.baselines["tf-idf"]["accuracy"] > 0.9  # one word decides
    for scores in record.baselines.values():
        assert scores["accuracy_low"] <= scores["accuracy"] <= scores["accuracy_high"]
        assert scores["difference"] == pytest.approx(record.metrics["after"]["accuracy"] - scores["accuracy"])
    shown = capsys.readouterr().out
    assert "linear probe" in shown
    assert shown.index("majority") < shown.index("tf-idf") < shown.index("before") < shown.index("after")


def test_images_have_no_words(tmp_path) -> None:
    trainer = trainer_of(
        tmp_path, make_image_model(tmp_path / "model"), make_images(tmp_path / "images"), task="image-classification"
    )
    found = compute_baselines(trainer)
    assert list(found) == ["majority", "linear probe"]
    assert found["linear probe"].metrics["accuracy"] > 0.9  # dark and light


def test_they_can_be_left_out_and_a_language_model_has_none(tiny_llama, rows, tmp_path) -> None:
    assert list(compute_baselines(trainer_of(tmp_path, tiny_llama, rows, skip_baselines=True))) == ["majority"]
    assert compute_baselines(trainer_of(tmp_path, tiny_llama, rows, task="causal-lm")) == {}


def test_a_short_run_is_compared_on_the_rows_that_it_sees(tiny_llama, rows, tmp_path) -> None:
    trainer = trainer_of(tmp_path, tiny_llama, rows, max_steps=3, batch_size=4, gradient_accumulation=2)
    planned = planned_rows(trainer)
    assert len(planned) == 24
    trainer.train()
    seen = trainer.state.num_input_tokens_seen
    assert seen == sum(len(trainer.run.examples["train"][row]["input_ids"]) for row in planned)
    assert planned_rows(trainer_of(tmp_path, tiny_llama, rows, epochs=1)) == list(range(72))


def test_the_base_is_probed_as_it_is_before_training(tiny_llama, rows, tmp_path) -> None:
    """PiSSA changes the frozen weights and its adapter makes up for it: the features are still the base's."""
    plain = compute_baselines(trainer_of(tmp_path, tiny_llama, rows))["linear probe"]
    pissa = compute_baselines(trainer_of(tmp_path, tiny_llama, rows, method="pissa"))["linear probe"]
    assert plain.metrics["accuracy"] == pytest.approx(pissa.metrics["accuracy"], abs=0.13)  # one of eight rows
