"""What a study is: the work it plans, and claims that carry their own judgment.

A study's work is a list of cells. A cell is one independent piece, named by a few plain values (a rate, a seed). A claim holds
the sentence to be tested and the function that judges it from the finished cells.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from alloralib.comparison.statistics import Verdict, interval, verdict

from .cells import Cell, Key, Result, Settings
from .data import StudyData

Judge = Callable[[Sequence[Cell], Settings], "Finding"]
Values = Callable[[Sequence[Cell], Settings], Sequence[float]]


@dataclass(frozen=True)
class Finding:
    """What was measured for a claim, and the verdict.

    Attributes:
        ours: our number, with its unit.
        low, high: the interval the verdict was taken from.
        spread: what the interval is, such as a 95 % interval over 5 seeds, a range over data sets, or an exact value.
        rule: when the claim counts as confirmed.
        verdict: confirmed, not confirmed or inconclusive.
    """

    ours: str
    low: float
    high: float
    spread: str
    rule: str
    verdict: Verdict


@dataclass(frozen=True)
class Claim:
    """A sentence that the paper states or that we test beside it, and how it is judged.

    Attributes:
        name: short, unique within the study; records refer to it.
        where: the figure, table or section it comes from.
        text: the claim in words.
        paper: the paper's number, as printed.
        judge: (cells, settings) -> finding; see `by_mean` and `by_range`.
        by_paper: False for a check or question of our own. The page counts those separately.
    """

    name: str
    where: str
    text: str
    paper: str
    judge: Judge
    by_paper: bool = True

    def words(self) -> dict[str, object]:
        """The claim as it stands in a record."""
        return {name: getattr(self, name) for name in ("name", "where", "text", "paper", "by_paper")}


@dataclass(frozen=True)
class Study:
    """A figure, table, proposition or question that can be run.

    Attributes:
        name: the name on the command line. Its title stands in `catalogue.TITLES`.
        claims: what is judged.
        settings: scale (laptop, paper) -> settings.
        differs: scale -> how this differs from what the paper did or says.
        plan: settings -> the keys of the cells.
        work: (key, settings, data) -> the result of a cell, plain values.
        draw: (cells, settings, path) writes a PNG.
        needs: settings -> the data sets: mnist, cifar10, or sets that the library has registered.
        libraries: packages whose version matters, besides torch, numpy and scipy.
        follow: (cells of the plan, settings) -> the keys of further cells, for work that depends on the first results.
        sources: other studies whose cells are judged too, before this study's own. They are run first, with the same settings.
    """

    name: str
    claims: Sequence[Claim]
    settings: dict[str, Settings]
    differs: dict[str, str]
    plan: Callable[[Settings], list[Key]]
    work: Callable[[Key, Settings, StudyData], Result]
    draw: Callable[[Sequence[Cell], Settings, Path], None]
    needs: Callable[[Settings], tuple[str, ...]] = lambda settings: ()
    libraries: tuple[str, ...] = ()
    follow: Callable[[Sequence[Cell], Settings], list[Key]] | None = None
    sources: tuple[str, ...] = ()


def keys(**parts: Iterable[object]) -> list[Key]:
    """A key for every combination of these values; the last part varies fastest.

    >>> keys(rate=[0.1, 0.5], seed=range(2))
    [{'rate': 0.1, 'seed': 0}, {'rate': 0.1, 'seed': 1}, {'rate': 0.5, 'seed': 0}, {'rate': 0.5, 'seed': 1}]
    """
    return [dict(zip(parts, values, strict=True)) for values in itertools.product(*parts.values())]


def both_scales(text: str) -> dict[str, str]:
    """The same text for both scales."""
    return {"laptop": text, "paper": text}


def minus(a: Iterable[float], b: Iterable[float]) -> list[float]:
    """The paired differences a - b. Both must have the same length."""
    return [x - y for x, y in zip(a, b, strict=True)]


def by_mean(
    values: Values, *, unit: str = "", above: float | None = None, below: float | None = None, over: str = "seeds"
) -> Judge:
    """Judge the mean of independent repetitions by its 95 % interval.

    Args:
        values: (cells, settings) -> one value per repetition, at least two.
        unit: appended to the numbers, with a leading space.
        above, below: the claim's thresholds, at least one.
        over: what the repetitions are, in the plural.
    """
    return lambda cells, settings: mean_finding(values(cells, settings), unit=unit, above=above, below=below, over=over)


def by_range(values: Values, *, over: str, unit: str = "", above: float | None = None, below: float | None = None) -> Judge:
    """Judge a claim about each of several cases: it is confirmed if every case satisfies it.

    Args:
        values: (cells, settings) -> one value per case. A single value is taken as exact.
        unit, above, below: as in `by_mean`.
        over: what the cases are, in the plural; for a single value, what it is.
    """
    return lambda cells, settings: range_finding(values(cells, settings), unit=unit, above=above, below=below, over=over)


def mean_finding(
    values: Sequence[float], *, unit: str = "", above: float | None = None, below: float | None = None, over: str = "seeds"
) -> Finding:
    """`by_mean` for values that are already there."""
    low, high = interval(values)
    ours = _number(math.fsum(values) / len(values)) + unit
    said = verdict(low, high, above=above, below=below)
    return Finding(ours, low, high, f"95 % over {len(values)} {over}", _rule(above, below, unit), said)


def range_finding(
    values: Sequence[float], *, over: str, unit: str = "", above: float | None = None, below: float | None = None
) -> Finding:
    """`by_range` for values that are already there."""
    low, high = min(values), max(values)
    ours = _number(low) + unit if low == high else f"{_number(low)} to {_number(high)}{unit}"
    spread = f"range over {len(values)} {over}" if len(values) > 1 else over
    return Finding(ours, low, high, spread, _rule(above, below, unit), verdict(low, high, above=above, below=below))


def _rule(above: float | None, below: float | None, unit: str) -> str:
    parts = [] if above is None else [f"above {_number(above)}{unit}"]
    parts += [] if below is None else [f"below {_number(below)}{unit}"]
    return " and ".join(parts)


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.2e}" if abs(value) >= 1e6 else f"{value:.0f}"
