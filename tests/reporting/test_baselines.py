"""What a record says about its baselines."""

import pytest

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


def test_a_record_of_0_2_0_has_the_majority_in_its_data() -> None:
    assert answers(record())["majority"] == {"accuracy": 0.5}
