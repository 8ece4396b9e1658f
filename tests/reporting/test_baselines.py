"""What a record says about its baselines."""

import pytest

from alloralib.records import RunRecord
from alloralib.reporting.baselines import answers, shortfall
from alloralib.reporting.card import card

from ..test_records import record


def baselines(**differences: tuple[float, float]) -> dict[str, dict[str, float]]:
    """By name: the tuned model's accuracy of 0.75 minus the difference, and the p-value."""
    return {
        name: {"accuracy": 0.75 - difference, "difference": difference, "p_value": p}
        for name, (difference, p) in differences.items()
    }


def test_a_run_above_every_baseline_is_not_short() -> None:
    assert shortfall(record(baselines=baselines(majority=(0.25, 1e-9), probe=(0.01, 0.6)))) is None
    assert shortfall(record()) is None  # a record without baselines


@pytest.mark.parametrize(
    ("difference", "p", "said"),
    [
        (-0.03, 0.001, "3.0 points below probe (p = 0.001)"),
        (-0.004, 0.4, "0.4 points below probe (within chance, p = 0.4)"),
        (0.0, 1.0, "equal to probe (within chance, p = 1)"),
    ],
)
def test_a_run_that_is_not_above_the_best_baseline_says_so_and_what_to_do(difference: float, p: float, said: str) -> None:
    run = record(baselines=baselines(majority=(0.25, 1e-9), probe=(difference, p)))
    text = shortfall(run) or ""
    assert said in text
    assert "--epochs" in text
    assert "or use probe" in text
    assert said in card(run)


def test_the_baselines_stand_beside_the_model() -> None:
    run = record(baselines=baselines(majority=(0.25, 1e-9), probe=(0.05, 0.01)))
    assert list(answers(run)) == ["majority", "probe", "before", "after"]
    assert "| | majority | probe | before | after |" in card(run)
    assert "| accuracy | 0.5000 | 0.7000 | 0.5000 | 0.7500 |" in card(run)


def language(loss: float, baseline: float | None, p: float = 0.001) -> RunRecord:
    """A language model's record: the loss of the trained model, and with four examples."""
    few = {"loss": baseline, "difference": None if baseline is None else loss - baseline, "p_value": p}
    data = {name: value for name, value in record().data.items() if name not in ("majority", "labels")}
    metrics = {"before": {"loss": 3.0}, "after": {"loss": loss}}
    config = {"task": "causal-lm", "model": "smollm2-135m"}
    few["rows_with_fewer_examples"] = 1200
    return record(config=config, data=data, metrics=metrics, baselines={"4-shot": few})


@pytest.mark.parametrize(
    ("loss", "p", "said"),
    [
        (2.125, 0.001, "loss is 0.1250 above that of the base model 4-shot (p = 0.001)"),
        (2.0, 1.0, "loss is equal to that of the base model 4-shot (within chance, p = 1)"),
    ],
)
def test_a_language_model_that_is_not_better_than_with_examples_says_so(loss: float, p: float, said: str) -> None:
    text = shortfall(language(loss, 2.0, p)) or ""
    assert said in text
    assert "put 4 examples into the base model's prompt" in text
    assert said in card(language(loss, 2.0, p))


def test_a_language_model_with_a_lower_loss_is_not_short() -> None:
    run = language(1.5, 2.0)
    assert shortfall(run) is None
    assert list(answers(run)) == ["4-shot", "before", "after"]
    assert "| loss | 2.0000 | 3.0000 | 1.5000 |" in card(run)
    assert "4-shot: 1,200 of the rows have room for fewer examples." in card(run)
    run.baselines["8-shot"] = run.baselines["4-shot"] | {"loss": 1.25, "difference": 0.25}
    assert list(answers(run)) == ["4-shot", "8-shot", "before", "after"]
    assert "0.2500 above that of the base model 8-shot" in (shortfall(run) or "")
    assert shortfall(language(1.5, None)) is None  # its loss was not finite


def test_multiple_choice_is_compared_by_accuracy() -> None:
    few = {"4-shot": {"accuracy": 0.8, "loss": 9.0, "difference": -0.05, "p_value": 0.2}}
    text = shortfall(record(baselines=few, metrics={"before": {"accuracy": 0.5}, "after": {"accuracy": 0.75, "loss": 1.0}}))
    assert "the trained model is 5.0 points below 4-shot (within chance, p = 0.2)" in (text or "")
    assert "put 4 examples" in (text or "")


def test_a_record_of_0_2_0_has_the_majority_in_its_data() -> None:
    assert answers(record())["majority"] == {"accuracy": 0.5}
