"""The baselines of a run: their rows, their numbers in the record, and what is printed."""

import pytest

from alloralib.cli.main import main
from alloralib.cli.train import summary
from alloralib.evaluation.metrics import Evaluation
from alloralib.evaluation.shots import Shots, make_shots
from alloralib.records import RunRecord
from alloralib.training.baselines import against, compute_baselines, planned_rows
from alloralib.training.callbacks import StopOnSignal
from alloralib.training.config import RunConfig
from alloralib.training.directory import RunDirectory
from alloralib.training.prepare import prepare
from alloralib.training.trainer import RunTrainer

from ..trained import command, jsonl, make_image_model, make_images, sentences


@pytest.fixture
def rows(tmp_path) -> str:
    return jsonl(tmp_path / "rows.jsonl", [{"text": t, "label": "pos" if good else "neg"} for t, good in sentences(80)])


@pytest.fixture
def completions(tmp_path) -> dict[str, str]:
    rows = [{"prompt": f"{text} is", "completion": " good" if good else " bad"} for text, good in sentences(80)]
    columns = {"prompt_column": "prompt", "completion_column": "completion"}
    return {"task": "causal-lm", "data": jsonl(tmp_path / "completions.jsonl", rows), **columns}


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


def test_they_can_be_left_out(tiny_llama, rows, completions, tmp_path, capsys) -> None:
    assert list(compute_baselines(trainer_of(tmp_path, tiny_llama, rows, skip_baselines=True))) == ["majority"]
    assert compute_baselines(trainer_of(tmp_path, tiny_llama, **completions, skip_baselines=True)) == {}
    assert compute_baselines(trainer_of(tmp_path, tiny_llama, rows, task="causal-lm")) == {}  # plain text has no prompt
    assert "examples" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["causal-lm", "chat", "multiple-choice"])
def test_a_language_model_is_compared_with_examples_in_the_prompt(trained, name: str) -> None:
    record = RunRecord.read(trained(name) / "record.json")
    assert list(record.baselines) == ["4-shot"]
    found, before, after = record.baselines["4-shot"], record.metrics["before"], record.metrics["after"]
    assert set(found) == {*before, "rows_with_fewer_examples", "difference", "p_value"}
    assert found["tokens"] == before["tokens"]
    assert found["loss"] != before["loss"]
    score = "accuracy" if name == "multiple-choice" else "loss"
    assert found["difference"] == after[score] - found[score]
    assert found["rows_with_fewer_examples"] == 0
    text = summary(record, "runs/x")
    assert text.index("4-shot") < text.index("before") < text.index("after")
    assert "| | 4-shot | before | after |" in (trained(name) / "README.md").read_text()


def test_the_examples_are_training_rows_by_the_data_seed(tiny_llama, completions, tmp_path, monkeypatch) -> None:
    """No test row is among them, and the method, the rank and the adapter's seed do not change them."""
    made: list[Shots] = []
    monkeypatch.setattr("alloralib.training.baselines.make_shots", lambda *a, **k: made.append(make_shots(*a, **k)) or made[-1])
    other = {"method": "pissa", "r": 3, "adapter_seed": 5, "max_steps": 1}
    for settings in ({}, other, {"data_seed": 1}):
        trainer = trainer_of(tmp_path, tiny_llama, **completions, **settings)
        compute_baselines(trainer)
        run = trainer.run
        train, test = run.parts.train.columns["prompt"], run.parts.test.columns["prompt"]
        for ids, own in zip(made[-1].rows["input_ids"], test, strict=True):
            text = run.processor.decode(ids)
            assert [prompt for prompt in test if prompt in text] == [own]
            assert sum(prompt in text for prompt in train) == 4
    assert made[0].examples == made[1].examples != made[2].examples


def test_a_prompt_with_room_for_fewer_examples_is_counted_and_said(tiny_llama, completions, tmp_path, capsys) -> None:
    found = compute_baselines(trainer_of(tmp_path, tiny_llama, **completions, max_length=18))["4-shot"]
    assert found.metrics["rows_with_fewer_examples"] == 8
    assert "8 of 8 prompts have room for fewer than 4 examples within 18 tokens" in capsys.readouterr().err
    assert compute_baselines(trainer_of(tmp_path, tiny_llama, **completions, max_length=8)) == {}
    assert "no test row has room for an example within 8 tokens" in capsys.readouterr().err


def test_the_test_of_losses_counts_the_rows() -> None:
    """5 of 5 rows have a lower loss: p = 2 / 2**5. The difference is that of the losses per token."""

    def of(losses: list[float], tokens: list[int]) -> Evaluation:
        mean = sum(loss * n for loss, n in zip(losses, tokens, strict=True)) / sum(tokens)
        items = [{"row": i, "loss": a, "tokens": n} for i, (a, n) in enumerate(zip(losses, tokens, strict=True))]
        return Evaluation({"loss": mean}, items)

    tokens = [1, 2, 3, 4, 10]
    found = against({"4-shot": of([2, 2, 2, 2, 3], tokens)}, of([1, 1, 1, 1, 1], tokens))["4-shot"]
    assert found == {"loss": 2.5, "difference": -1.5, "p_value": 2 / 2**5}


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
