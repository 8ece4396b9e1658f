"""Figure 1: how many dropout masks it takes until their mean loss is close to the expected loss.

Linear LoRA with dropout on the bottleneck and squared loss, eq. (1). W is a ridge fit to one half of the rows, or zero. On the
other half, A is random and B is the minimizer of the expected loss, in closed form. Then masks are drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..cells import Cell, Key, Result, Settings, results, select
from ..data import StudyData
from ..drawing import axes_grid, save
from ..dropout_theory import expected_loss, loss_variance, mean_absolute_error, penalty, sampled_losses
from ..study import Claim, Finding, Study, by_range, keys, range_finding

COMMON: Settings = {
    "datasets": ["diabetes", "digits", "mnist"], "bases": ["fitted", "zero"], "rates": [0.05, 0.1, 0.2, 0.3, 0.5],
    "realisations": [1, 3, 10, 30, 100, 300, 1000, 3000, 10000], "ridge": 1.0, "seed": 0,
}  # fmt: skip


def work(key: Key, settings: Settings, data: StudyData) -> Result:
    """The mean |empirical - expected| for each number of masks, one running mean, and what the theory predicts."""
    E, H, B = problem(key, settings, data)
    q = 1 - key["rate"]
    expected, std = float(expected_loss(E, H, B, q)), math.sqrt(float(loss_variance(E, H, B, q)))
    counts = settings["realisations"]
    generator = torch.Generator().manual_seed(settings["seed"] + 1)
    most = max(counts)
    errors: dict[int, list[float]] = {n: [] for n in counts}
    path: list[float] = []
    for repeat in range(settings["repeats"]):
        losses = sampled_losses(E, H, B, q, most, generator)
        for n in counts:  # disjoint blocks of n
            means = losses[: most // n * n].view(-1, n).mean(1)
            errors[n].append(float((means - expected).abs().mean()))
        if repeat == 0:
            running = losses.cumsum(0)
            path = [abs(float(running[n - 1]) / n - expected) for n in counts]
    return {
        "expected": expected, "penalty": float(penalty(H, B, q)), "std": std, "rows": H.shape[0],
        "error": [float(np.mean(errors[n])) for n in counts], "path": path,
        "predicted": [mean_absolute_error(std, n) for n in counts],
    }  # fmt: skip


def problem(key: Key, settings: Settings, data: StudyData) -> tuple[Tensor, Tensor, Tensor]:
    """E (N, C), H (N, r) and B (r, C) in float64, in the notation of `dropout_theory`."""
    X, Y = _load(key["dataset"], settings, data)
    g = torch.Generator().manual_seed(settings["seed"])
    order = torch.randperm(len(X), generator=g)
    rows = min(settings["rows"], len(X) // 2)
    first, second = order[rows : 2 * rows], order[:rows]
    r = min(settings["rank"], X.shape[1])
    if key["base"] == "zero":
        E = Y[second]
    else:
        XX = X[first].mT @ X[first] + settings["ridge"] * torch.eye(X.shape[1], dtype=X.dtype)
        E = Y[second] - X[second] @ torch.linalg.solve(XX, X[first].mT @ Y[first])
    bound = 1 / math.sqrt(X.shape[1])  # Kaiming-uniform with a = sqrt(5), as in PEFT
    A = (torch.rand(X.shape[1], r, generator=g, dtype=X.dtype) * 2 - 1) * bound
    H = X[second] @ A
    s2 = key["rate"] / (1 - key["rate"])
    B = torch.linalg.solve(H.mT @ H + s2 * torch.diag(H.square().sum(0)), H.mT @ E)
    return E, H, B


def _load(name: str, settings: Settings, data: StudyData) -> tuple[Tensor, Tensor]:
    """Standardized inputs, and targets: standardized numbers, or one-hot vectors minus their mean."""
    if name == "mnist":
        x, labels = data.mnist("train")
        X, Y = x[: 4 * settings["rows"]].double(), labels[: 4 * settings["rows"]]
    else:
        from sklearn import datasets

        loaded: Any = getattr(datasets, f"load_{name}")(return_X_y=True)
        X, Y = torch.from_numpy(loaded[0]).double(), torch.from_numpy(loaded[1])
    if name != "diabetes":
        Y = F.one_hot(Y.long(), 10)
    Y = Y.double().view(len(X), -1)
    X = (X - X.mean(0)) / X.std(0).clamp(min=1e-6) if name != "mnist" else X
    return X, (Y - Y.mean(0)) / (Y.std(0) if name == "diabetes" else 1)


def error_of_300(cells: Sequence[Cell], settings: Settings, over: str) -> list[float]:
    """The error of the mean of 300 masks at the smallest rate, in percent of another entry of the result."""
    place = settings["realisations"].index(300)
    return [100 * r["error"][place] / r[over] for r in results(cells, rate=min(settings["rates"]))]


def slopes(cells: Sequence[Cell], settings: Settings) -> list[float]:
    """The slope of the error over the number of masks, log-log, for each cell."""
    logs = np.log(settings["realisations"])
    return [float(np.polyfit(logs, np.log(c.result["error"]), 1)[0]) for c in cells]


def prediction(cells: Sequence[Cell], settings: Settings) -> Finding:
    """The measured error over the one predicted from the exact variance, from 10 masks on."""
    places = [i for i, n in enumerate(settings["realisations"]) if n >= 10]
    ratios = [c.result["error"][i] / c.result["predicted"][i] for c in cells for i in places]
    return range_finding([float(np.mean(ratios))], above=0.95, below=1.05, over=f"mean over {len(ratios)} points")


def draw(cells: Sequence[Cell], settings: Settings, path: Path) -> None:
    """Absolute and relative error by number of masks, log-log: rows are rates, columns data sets, theory dashed."""
    counts, rates, sets = settings["realisations"], settings["rates"], settings["datasets"]
    figure, axes = axes_grid(len(rates), 2 * len(sets), size=(1.9, 1.5))
    for i, rate in enumerate(rates):
        for j, (kind, dataset) in enumerate((k, d) for k in ("absolute", "relative") for d in sets):
            ax = axes[i][j]
            for color, base in zip(("C0", "C1"), settings["bases"], strict=False):
                (cell,) = select(cells, dataset=dataset, base=base, rate=rate)
                result = cell.result
                over = 1 if kind == "absolute" else result["expected"]
                ax.loglog(counts, [v / over for v in result["path"]], lw=0.6, alpha=0.5, color=color)
                ax.loglog(counts, [v / over for v in result["error"]], "o", ms=2.5, color=color, label=f"W {base}")
                ax.loglog(counts, [v / over for v in result["predicted"]], "--", lw=0.9, color=color)
            if i == 0:
                ax.set_title(f"{dataset}, {kind}", fontsize=8)
            if j == 0:
                ax.set_ylabel(f"rate {rate:g}", fontsize=8)
            if i == len(rates) - 1:
                ax.set_xlabel("realisations", fontsize=8)
    axes[0][0].legend(frameon=False, fontsize=6)
    figure.suptitle("|empirical - expected| loss: dots mean, thin one run, dashed sqrt(2/pi) Std/sqrt(N)", fontsize=9)
    save(figure, path)


STUDY = Study(
    name="fig1",
    claims=[
        Claim(
            "poor-loss", "Figure 1", "The mean loss over hundreds of dropout masks estimates the expected loss poorly, already "
            "at rate .05 (error of the mean of 300 masks, in percent of the expected loss).", paper="poor (no number stated)",
            judge=by_range(
                lambda cells, s: error_of_300(cells, s, "expected"), above=10, unit=" %", over="data sets and bases"
            ),
        ),
        Claim(
            "poor-penalty", "Figure 1", "The same error is large compared with the penalty, which is what dropout adds to the "
            "expected loss (in percent of the penalty).", paper="poor (no number stated)",
            judge=by_range(
                lambda cells, s: error_of_300(cells, s, "penalty"), above=10, unit=" %", over="data sets and bases"
            ),
        ),
        Claim(
            "slope", "Appendix A", "The error falls as 1/sqrt(N) and no faster (slope of log error over log N).", paper="-0.5",
            judge=by_range(slopes, above=-0.6, below=-0.4, over="cells"),
        ),
        Claim(
            "variance", "exact variance", "The exact variance of the loss predicts the error (measured / predicted, N >= 10).",
            paper="1", judge=prediction, by_paper=False,
        ),
    ],
    settings={
        "laptop": COMMON | {"rows": 256, "rank": 8, "repeats": 4},
        "paper": COMMON | {"rows": 4096, "rank": 8, "repeats": 20},
    },
    differs={
        "laptop": "The paper does not state sizes, the rank or the values of A and B. Here: at most 256 rows, rank 8, B the "
        "minimizer of the expected loss, W a ridge fit to other rows or zero. Each row has its own mask, so more rows make the "
        "estimate better. 'Poor' is taken to mean an error above 10 %.",
        "paper": "The paper does not state sizes, the rank or the values of A and B. Here: at most 4096 rows, rank 8.",
    },
    plan=lambda s: keys(dataset=s["datasets"], base=s["bases"], rate=s["rates"]),
    work=work,
    draw=draw,
    needs=lambda settings: ("mnist",),
    libraries=("scikit-learn",),
)  # fmt: skip
