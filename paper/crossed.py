"""Compare two methods over seeds and items together (Table 3: several seeds, the same questions for all)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from alloralib.comparison.statistics import LEVEL, Comparison


def compare_crossed(a: ArrayLike, b: ArrayLike) -> Comparison:
    """Compare two methods over seeds and items together, with the uncertainty that comes from both.

    With d[s, i] = a - b the variance of the grand mean is sigma_seed^2/S + sigma_item^2/N + sigma_rest^2/(S N), estimated
    from the mean squares of the two-way layout, with degrees of freedom after Satterthwaite (the quasi-F of Clark 1973).

    Args:
        a, b: (S, N) scores by seed and item, S >= 2, N >= 2.
    """
    d = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    if d.ndim != 2 or min(d.shape) < 2:
        raise ValueError(f"expected at least 2 seeds x 2 items, got shape {d.shape}")
    if not np.isfinite(d).all():
        raise ValueError("a value is NaN or infinite")
    seeds, items = d.shape
    mean = float(d.mean())
    by_seed, by_item = d.mean(axis=1), d.mean(axis=0)
    rest = d - by_seed[:, None] - by_item[None, :] + mean
    v_seed, v_item = float(by_seed.var(ddof=1)) / seeds, float(by_item.var(ddof=1)) / items
    v_rest = float((rest**2).sum()) / ((seeds - 1) * (items - 1)) / (seeds * items)
    total = max(v_seed + v_item - v_rest, v_seed, v_item)
    if total == 0:
        return Comparison(mean, mean, mean, 1.0 if mean == 0 else 0.0, seeds * items, "no spread")
    df = total**2 / (v_seed**2 / (seeds - 1) + v_item**2 / (items - 1) + v_rest**2 / ((seeds - 1) * (items - 1)))
    half = float(stats.t.ppf((1 + LEVEL) / 2, df)) * math.sqrt(total)
    p = float(2 * stats.t.sf(abs(mean) / math.sqrt(total), df))
    return Comparison(mean, mean - half, mean + half, p, seeds * items, f"crossed t, {seeds} seeds x {items} items")
