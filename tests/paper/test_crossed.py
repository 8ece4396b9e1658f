"""Identical methods are rarely called different over seeds and items, and a planted difference is found."""

import numpy as np
from scipy import stats

from paper.crossed import compare_crossed

SIMULATIONS = 400


def crossed(rng, gain=0.0, seeds=5, items=200):
    """Right or wrong by seed and item: items differ in difficulty, seeds in luck, separately for each arm."""
    hard = rng.normal(0, 1.5, items)
    luck = rng.normal(0, 0.15, (2, seeds, 1))
    return [
        (rng.random((seeds, items)) < 1 / (1 + np.exp(-(1 + g + hard + luck[i])))).astype(float) for i, g in ((0, gain), (1, 0))
    ]


def test_identical_arms_over_seeds_and_items() -> None:
    rng = np.random.default_rng(2)
    found = [compare_crossed(*crossed(rng)) for _ in range(SIMULATIONS)]
    significant = sum(c.p < 0.05 for c in found)
    assert significant <= stats.binom.ppf(0.999, SIMULATIONS, 0.05)
    assert significant >= 3  # and the test has power


def test_a_planted_difference_is_found() -> None:
    rng = np.random.default_rng(3)
    found = [compare_crossed(*crossed(rng, gain=0.8)) for _ in range(100)]
    assert sum(c.p < 0.05 for c in found) >= 90


def test_no_spread() -> None:
    assert compare_crossed(np.ones((2, 2)), np.ones((2, 2))).p == 1
