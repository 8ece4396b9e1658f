"""What the padding benchmark counts and shows."""

import pytest

from benchmarks import padding


def test_padding_is_a_share_of_the_other_tokens() -> None:
    assert padding.added([1, 3, 2], [[0, 1], [2]]) == pytest.approx(2 / 6)


def test_the_overview_shows_median_and_range_over_the_sets() -> None:
    sets = {
        name: {"rows": 90, "tokens": 900, "set": share, "random": share, "buckets": share, "packed": 0.0, "test": share}
        | {"small": small}
        for name, share, small in (("a", 0.1, {"100": {"buckets": 0.5, "packed": 0.2}}), ("b", 0.2, {}), ("c", 0.6, {}))
    }
    record = {"padding": {"smollm2-135m": sets}}
    middle = "20.0% (10.0% to 60.0%)"
    small = "50.0% (50.0% to 50.0%) | 20.0% (20.0% to 20.0%)"
    expected = f"| SmolLM2 | 3 | {middle} | {middle} | {middle} | 0.0% (0.0% to 0.0%) | {small} | {middle} |"
    assert padding.overview(record).splitlines()[-1] == expected
    assert "| SmolLM2 | a | 90 | 10 | 10% | 10% | 10.0% | 0.0% | 50.0% | 20.0% | 10.0% |  |" in padding.table(record)
