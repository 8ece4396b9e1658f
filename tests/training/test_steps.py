"""How many optimizer steps a run has, and what the schedule, the history and validation make of them."""

import dataclasses
import math

import pytest

from alloralib.training.callbacks import StopOnSignal
from alloralib.training.config import RunConfig
from alloralib.training.directory import RunDirectory
from alloralib.training.preflight import preflight
from alloralib.training.prepare import Run, prepare
from alloralib.training.run import train
from alloralib.training.state import RunState
from alloralib.training.trainer import RunTrainer


@pytest.fixture
def settings(tiny_llama, reviews, tmp_path) -> dict:
    return {
        "task": "classification", "model": tiny_llama, "data": str(reviews), "output_dir": str(tmp_path / "run"), "r": 2,
        "target_modules": "q_proj,v_proj", "batch_size": 4,
    }  # fmt: skip


def trainer_of(run: Run, rows: int, **changed) -> RunTrainer:
    examples = run.examples | {"train": run.examples["train"].select(range(rows))}
    config = run.config.model_copy(update=changed)
    return RunTrainer(dataclasses.replace(run, config=config, state=RunState({}), examples=examples))


def prepared(settings: dict) -> Run:
    config = RunConfig.of(settings)
    return prepare(config, RunDirectory(config.output_dir), StopOnSignal())


# rows, batch size, accumulation, epochs or (negative) steps -> steps planned, and their numbers of forward passes
PLANS = {
    "a partial window alone": (10, 4, 3, 1, [3]),
    "windows of three and one": (16, 4, 3, 2, [3, 1, 3, 1]),
    "half an epoch": (16, 4, 1, 0.5, [1, 1]),
    "half an epoch of one step": (10, 4, 3, 0.5, [3]),
    "half of three steps, rounded up": (12, 4, 1, 0.5, [1, 1]),
    "1.1 epochs": (10, 1, 1, 1.1, [1] * 11),
    "steps up to the middle of an epoch": (16, 4, 3, -3, [3, 1, 3]),
    "fewer rows than a batch": (3, 4, 1, 2, [1, 1]),
    "one row": (1, 4, 2, 3, [1, 1, 1]),
    "more accumulation than batches": (8, 4, 16, 2, [2, 2]),
}


def test_steps_of_a_run(settings) -> None:
    run = prepared(settings)
    for name, (rows, batch, accumulation, length, passes) in PLANS.items():
        given = {"epochs": float(length)} if length > 0 else {"max_steps": -length}
        changed = {"batch_size": batch, "gradient_accumulation": accumulation, "warmup": 0.0} | given
        trainer, seen = trainer_of(run, rows, **changed), []
        step = trainer.training_step
        trainer.training_step = lambda *args, step=step, seen=seen, trainer=trainer: (  # type: ignore[method-assign]
            seen.append(trainer.state.global_step),
            step(*args),
        )[1]
        assert trainer.planned_steps() == len(passes), name
        trainer.fit()
        assert [seen.count(step) for step in range(len(passes))] == passes, name
        history = trainer.run.state.history
        assert [entry["step"] for entry in history] == list(range(1, len(passes) + 1)), name
        assert trainer.state.global_step == trainer.state.max_steps == len(passes), name
        assert history[0]["learning_rate"] == pytest.approx(1e-3), name
        assert max(trainer.lr_scheduler.get_last_lr()) == pytest.approx(0.0), name  # the cosine has come to its end


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0.05), (1, 0.9), (2, 0.05), (5, 0.9), (20, 0.05), (40, 0.05)])
def test_some_step_has_the_peak_learning_rate(settings, steps: int, warmup: float) -> None:
    trainer = trainer_of(prepared(settings), 8, max_steps=steps, warmup=warmup, learning_rate=0.5, schedule="linear")
    trainer.fit()
    rates = [entry["learning_rate"] for entry in trainer.run.state.history]
    warm = min(math.ceil(steps * warmup), steps - 1)
    assert rates[warm] == max(rates) == 0.5
    assert rates[:warm] == pytest.approx([0.5 * i / warm for i in range(warm)])
    assert set(trainer.lr_scheduler.get_last_lr()) == {0.0}


def test_a_run_of_one_step_trains(settings) -> None:
    record = train(RunConfig.of(settings | {"train_rows": 10, "gradient_accumulation": 3, "epochs": 1}))
    assert [entry["learning_rate"] for entry in record.history] == [1e-3]
    assert record.metrics["after"]["loss"] != record.metrics["before"]["loss"]


@pytest.mark.parametrize("length", [{"epochs": 1.5}, {"max_steps": 6}])
def test_validation_comes_after_every_epoch(settings, length: dict) -> None:
    """Four steps an epoch, one of them in a partial window, and a run that stops in the middle of the second."""
    settings |= {"train_rows": 26, "gradient_accumulation": 2, "validation_share": 0.2, **length}
    record = train(RunConfig.of(settings))
    assert [entry["step"] for entry in record.validation["history"]] == [4, 6]


def test_the_cost_of_a_step_counts_the_passes_that_it_has(settings, monkeypatch) -> None:
    """Two batches an epoch are two forward passes a step, however large the accumulation is."""
    run = prepared(settings)
    monkeypatch.setattr("alloralib.training.preflight.time.perf_counter", iter(range(1000)).__next__)  # a second per pass
    plain = preflight(trainer_of(run, 8, gradient_accumulation=2))["cost"]
    wide = preflight(trainer_of(run, 8, gradient_accumulation=50))["cost"]
    assert wide["step_seconds"] == plain["step_seconds"]
    assert wide["steps"] == plain["steps"]
