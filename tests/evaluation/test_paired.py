"""Paired comparisons of two evaluations of the same rows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alloralib.evaluation.metrics import Evaluation
from alloralib.evaluation.paired import compare_evaluations, paired_difference, paired_losses


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=30))
def test_paired_difference(answers) -> None:
    before, after = [b for b, _ in answers], [a for _, a in answers]
    found = paired_difference(before, after)
    changed = found["only_before"] + found["only_after"]
    assert sum(found[k] for k in ("both_right", "both_wrong", "only_before", "only_after")) == len(answers)
    if answers:
        assert found["difference"] == pytest.approx(np.mean(after) - np.mean(before))
    if changed:
        from scipy.stats import binomtest

        assert found["p_value"] == pytest.approx(binomtest(int(found["only_after"]), int(changed)).pvalue)
    else:
        assert found["p_value"] == 1
    assert paired_difference(after, before)["p_value"] == found["p_value"]


def test_right_answers_are_compared_before_losses() -> None:
    before = Evaluation({}, [{"row": 0, "loss": 2.0, "correct": False}, {"row": 1, "loss": 1.0, "correct": True}])
    after = Evaluation({}, [{"row": 0, "loss": 3.0, "correct": True}, {"row": 1, "loss": 1.0, "correct": True}])
    assert compare_evaluations(before, after) == paired_difference([False, True], [True, True])


def test_rows_without_a_loss_are_left_out() -> None:
    before = Evaluation({}, [{"row": 0, "loss": 2.0}, {"row": 1, "loss": None}, {"row": 2, "loss": 1.0}])
    after = Evaluation({}, [{"row": 0, "loss": 1.5}, {"row": 1, "loss": None}, {"row": 2, "loss": 1.25}])
    found = compare_evaluations(before, after)
    assert found == paired_losses([2.0, 1.0], [1.5, 1.25])
    assert (found["lower"], found["higher"], found["difference"]) == (1, 1, pytest.approx(-0.125))
