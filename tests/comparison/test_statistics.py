"""Identical methods are rarely called different, a planted difference is found, and a verdict agrees with its interval."""

import numpy as np
import pytest
from scipy import stats

from alloralib.comparison.statistics import compare, holm, interval, verdict

SIMULATIONS = 400


def not_too_often(count: int) -> bool:
    """Whether `count` of 400 is what a true rate of 5 % (or less) gives: the upper 99.9 % of the binomial."""
    return count <= stats.binom.ppf(0.999, SIMULATIONS, 0.05)


def seeds_like(rng, shift=0.0, n=5):
    """Accuracies of n seeds: the effect of the seed is shared by both arms, the noise is not."""
    shared = rng.normal(80, 2, n)
    return shared + rng.normal(shift, 0.5, n), shared + rng.normal(0, 0.5, n)


@pytest.mark.parametrize("test", ["t", "permutation", "wilcoxon"])
@pytest.mark.parametrize("n", [5, 8])
def test_identical_arms_over_seeds(test, n) -> None:
    rng = np.random.default_rng(0)
    found = [compare(*seeds_like(rng, n=n), test=test) for _ in range(SIMULATIONS)]
    assert not_too_often(sum(c.p < 0.05 for c in found))
    assert not_too_often(sum(not c.low <= 0 <= c.high for c in found))


@pytest.mark.parametrize("n", [3, 5, 8])
def test_identical_arms_are_rarely_called_better(n) -> None:
    """The claim "a is better than b" is confirmed for at most 5 % of 400 pairs of identical arms."""
    rng = np.random.default_rng(5)
    intervals = [interval(np.subtract(*seeds_like(rng, n=n))) for _ in range(SIMULATIONS)]
    assert sum(verdict(low, high, above=0) == "confirmed" for low, high in intervals) <= 0.05 * SIMULATIONS
    assert sum(verdict(low, high, above=0) == "not confirmed" for low, high in intervals) <= 0.05 * SIMULATIONS


def test_after_holm_a_table_of_identical_arms_is_rarely_called_different() -> None:
    """A table of twelve comparisons has a significant one in about 5 % of all tables; without Holm in almost half of them."""
    rng = np.random.default_rng(6)
    tables = [[compare(*seeds_like(rng)).p for _ in range(12)] for _ in range(SIMULATIONS)]
    assert not_too_often(sum(min(holm(p)) < 0.05 for p in tables))
    assert sum(min(p) < 0.05 for p in tables) > 0.3 * SIMULATIONS


def test_identical_arms_over_items() -> None:
    """100 skewed values: the 95 % BCa interval misses zero in about 5 %."""
    rng = np.random.default_rng(1)
    missed = 0
    for i in range(SIMULATIONS):
        low, high = interval(rng.exponential(1, 100) - rng.exponential(1, 100), seed=i)
        missed += not low <= 0 <= high
    assert missed <= stats.binom.ppf(0.999, SIMULATIONS, 0.06)  # at n = 100 the bootstrap's coverage is up to a percent too low


def test_planted_differences_are_found() -> None:
    rng = np.random.default_rng(3)
    over_seeds = [compare(*seeds_like(rng, shift=2.0)) for _ in range(100)]
    assert sum(c.p < 0.05 and c.low > 0 for c in over_seeds) >= 90
    assert np.mean([c.mean for c in over_seeds]) == pytest.approx(2.0, abs=0.15)


def test_pairing_gives_the_power() -> None:
    """With broken pairs, the shared effect of the seeds hides the difference."""
    rng = np.random.default_rng(4)
    arms = [seeds_like(rng, shift=1.0, n=8) for _ in range(100)]
    paired = sum(compare(a, b).p < 0.05 for a, b in arms)
    broken = sum(compare(a, rng.permutation(b)).p < 0.05 for a, b in arms)
    assert paired >= 3 * broken


def test_the_bootstrap_of_a_few_values_is_too_narrow() -> None:
    """The reason for Student's t below 30: with 5 values the 95 % bootstrap interval misses far more than 5 %."""
    rng = np.random.default_rng(5)
    missed = {"bootstrap": 0, "ours": 0}
    for _ in range(SIMULATIONS):
        x = rng.normal(0, 1, 5)
        means = rng.choice(x, (2000, 5)).mean(1)
        low, high = np.quantile(means, [0.025, 0.975])
        missed["bootstrap"] += not low <= 0 <= high
        low, high = interval(x)
        missed["ours"] += not low <= 0 <= high
    assert not not_too_often(missed["bootstrap"])
    assert not_too_often(missed["ours"])


def test_holm_keeps_the_family_at_five_percent() -> None:
    rng = np.random.default_rng(6)
    families = [[compare(*seeds_like(rng)).p for _ in range(10)] for _ in range(SIMULATIONS)]
    assert not_too_often(sum(min(holm(p)) < 0.05 for p in families))
    assert not not_too_often(sum(min(p) < 0.05 for p in families))  # without the correction, too often


def test_holm_against_its_definition() -> None:
    assert holm([]) == []
    assert holm([0.5]) == [0.5]
    assert holm([0.04, 0.001, 0.9]) == pytest.approx([0.08, 0.003, 0.9])


@pytest.mark.parametrize(("low", "high", "claim", "expected"), [
    (1, 2, {"above": 0}, "confirmed"),
    (-2, 0, {"above": 0}, "not confirmed"),
    (-1, 1, {"above": 0}, "inconclusive"),
    (0.2, 0.4, {"above": 0.15, "below": 0.45}, "confirmed"),
    (0.5, 0.6, {"above": 0.15, "below": 0.45}, "not confirmed"),
    (0.4, 0.6, {"above": 0.15, "below": 0.45}, "inconclusive"),
    (3, 3, {"below": 4}, "confirmed"),
    (float("nan"), 1, {"above": 0}, "inconclusive"),
    (float("-inf"), float("inf"), {"below": 0}, "inconclusive"),
])  # fmt: skip
def test_verdict(low, high, claim, expected) -> None:
    assert verdict(low, high, **claim) == expected


def test_refusals() -> None:
    with pytest.raises(ValueError, match="two values"):
        interval([1.0])
    with pytest.raises(ValueError, match="NaN or infinite"):
        compare([1.0, float("nan")], [0.0, 0.0])
    with pytest.raises(ValueError, match="equal lengths"):
        compare([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="threshold"):
        verdict(0, 1)


def test_no_spread() -> None:
    same = compare([1.0, 2.0], [1.0, 2.0])
    assert (same.mean, same.low, same.high, same.p) == (0, 0, 0, 1)
    assert compare([2.0, 3.0, 4.0], [1.0, 2.0, 3.0]).p == 0.25


def test_the_bootstrap_is_seeded() -> None:
    x = np.random.default_rng(7).exponential(1, 60)
    assert interval(x, seed=3) == interval(x, seed=3) != interval(x, seed=4)
