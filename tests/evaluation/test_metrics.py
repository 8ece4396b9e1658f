"""Metrics against scikit-learn, and their edge cases."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score

from alloralib.evaluation.metrics import (
    classification_metrics,
    exact_match,
    perplexity,
    proportion,
    ratio_interval,
    wilson_interval,
)

pairs = st.integers(2, 6).flatmap(
    lambda k: st.tuples(st.just(k), st.lists(st.tuples(st.integers(0, k - 1), st.integers(0, k - 1)), min_size=1, max_size=40))
)


@given(pairs)
def test_classification_metrics_agree_with_scikit_learn(case) -> None:
    classes, answers = case
    predicted, truth = (np.asarray(column, dtype=np.int64) for column in zip(*answers, strict=True))
    ours = classification_metrics(predicted, truth, classes)
    assert ours["accuracy"] == pytest.approx(accuracy_score(truth, predicted))
    assert ours["macro_f1"] == pytest.approx(f1_score(truth, predicted, average="macro", zero_division=0))
    recalls = [np.mean(predicted[truth == c] == c) for c in set(truth.tolist())]
    assert ours["balanced_accuracy"] == pytest.approx(np.mean(recalls))
    if len(set(truth.tolist())) > 1 and set(predicted.tolist()) <= set(truth.tolist()):  # scikit-learn warns otherwise
        assert ours["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, predicted))
    assert 0 <= ours["accuracy_low"] <= ours["accuracy"] <= ours["accuracy_high"] <= 1


@given(st.integers(0, 60), st.integers(0, 60))
def test_wilson_interval_ends_where_the_score_test_rejects(correct: int, wrong: int) -> None:
    """The ends of the interval are the p at which |p^ - p| is z standard errors at p."""
    total, z = correct + wrong, 1.959963984540054
    low, high = wilson_interval(correct, total)
    if total == 0:
        assert (low, high) == (0, 1)
        return
    for p in (low, high):
        if p not in (0, 1, correct / total):
            assert abs(correct / total - p) == pytest.approx(z * math.sqrt(p * (1 - p) / total), abs=1e-9)


def test_exact_match_folds_case_and_space_and_takes_any_reference() -> None:
    found = exact_match([" The  EAGLE\n", "eagle", "Eagle."], ["the eagle", ["a bird", "Eagle"], "eagle"])
    assert [item["correct"] for item in found.items] == [True, True, False]
    assert found.metrics == proportion("exact_match", [True, True, False])


def test_perplexity_does_not_overflow() -> None:
    assert perplexity(800.0) == math.inf
    assert perplexity(0.0) == 1


def test_the_interval_of_a_ratio_has_its_nominal_coverage() -> None:
    """Rows of unequal length, whose tokens depend on each other: 95 %, within the spread of 400 repetitions."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        counts = rng.integers(1, 40, 120)
        levels = 2 + 0.5 * rng.standard_normal(120)
        totals = counts * levels + np.sqrt(counts) * rng.standard_normal(120)
        low, high = ratio_interval(totals, counts)
        held += low < 2 < high
    assert 0.92 < held / 400 < 0.98
    assert ratio_interval(np.array([1.0]), np.array([1])) == (-np.inf, np.inf)


@given(n=st.integers(1, 500), proportion_right=st.floats(0, 1))
def test_wilson_interval_holds_the_proportion(n: int, proportion_right: float) -> None:
    correct = round(proportion_right * n)
    low, high = wilson_interval(correct, n)
    assert 0 <= low <= correct / n + 1e-12
    assert correct / n - 1e-12 <= high <= 1 + 1e-12
