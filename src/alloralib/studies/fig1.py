"""Figure 1: how many realisations of dropout it takes until their mean loss is the expected one.

Linear LoRA with dropout on the bottleneck, squared loss, eq. (1). W is fitted (ridge) on one half of the rows, or zero; on the
other half B is the minimiser of the expected loss for a random A, in closed form. Then the masks are drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.dropout_theory import expected_loss, loss_variance, mean_absolute_error, penalty, sampled_losses
from ..reporting.study_figures import draw_fig1
from .frame import Cell, Claim, Finding, Key, Result, Settings, Study, judged_range, select
from .images import StudyData

POOR = 0.1
HUNDREDS = 300

_COMMON: Settings = {
    "datasets": ["diabetes", "digits", "mnist"], "bases": ["fitted", "zero"], "rates": [0.05, 0.1, 0.2, 0.3, 0.5],
    "realisations": [1, 3, 10, 30, 100, 300, 1000, 3000, 10000], "ridge": 1.0, "seed": 0,
}  # fmt: skip


def plan(settings: Settings) -> list[Key]:
    """A cell per data set, base and rate."""
    return [
        {"dataset": d, "base": b, "rate": r} for d in settings["datasets"] for b in settings["bases"] for r in settings["rates"]
    ]


def work(key: Key, settings: Settings, data: StudyData) -> Result:
    """Mean |empirical - expected| for every number of realisations, one running mean, and the theory beside them."""
    E, H, B = problem(key, settings, data)
    q = 1 - key["rate"]
    expected, std = float(expected_loss(E, H, B, q)), math.sqrt(float(loss_variance(E, H, B, q)))
    counts, repeats = settings["realisations"], settings["repeats"]
    generator = torch.Generator().manual_seed(settings["seed"] + 1)
    most = max(counts)
    errors: dict[int, list[float]] = {n: [] for n in counts}
    path: list[float] = []
    for repeat in range(repeats):
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
    """E (N, C), H (N, r) and B (r, C) in float64."""
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
    bound = 1 / math.sqrt(X.shape[1])  # Kaiming-uniform with a = sqrt(5), as PEFT
    A = (torch.rand(X.shape[1], r, generator=g, dtype=X.dtype) * 2 - 1) * bound
    H = X[second] @ A
    s2 = key["rate"] / (1 - key["rate"])
    B = torch.linalg.solve(H.mT @ H + s2 * torch.diag(H.square().sum(0)), H.mT @ E)
    return E, H, B


def _load(name: str, settings: Settings, data: StudyData) -> tuple[Tensor, Tensor]:
    """Inputs and targets: standardised; classes as one-hot vectors minus their mean."""
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


def judge(cells: Sequence[Cell], settings: Settings) -> list[Finding]:
    """Errors after 300 realisations at the smallest rate, the slope, and the exact prediction."""
    place = settings["realisations"].index(HUNDREDS)
    small = select(cells, rate=min(settings["rates"]))
    over_loss = [100 * c.result["error"][place] / c.result["expected"] for c in small]
    over_penalty = [100 * c.result["error"][place] / c.result["penalty"] for c in small]
    logs = np.log(settings["realisations"])
    slopes = [float(np.polyfit(logs, np.log(c.result["error"]), 1)[0]) for c in cells]
    from_10 = [i for i, n in enumerate(settings["realisations"]) if n >= 10]
    ratios = [c.result["error"][i] / c.result["predicted"][i] for c in cells for i in from_10]
    ratio = float(np.mean(ratios))
    cases = "data sets and bases"
    return [
        judged_range("poor-loss", over_loss, unit=" %", above=100 * POOR, over=cases),
        judged_range("poor-penalty", over_penalty, unit=" %", above=100 * POOR, over=cases),
        judged_range("slope", slopes, above=-0.6, below=-0.4, over="cells"),
        judged_range("variance", [ratio], above=0.95, below=1.05, over=f"mean over {len(ratios)} points"),
    ]


STUDY = Study(
    name="fig1",
    title="|empirical - expected| dropout loss against the number of realisations",
    claims=(
        Claim("poor-loss", "Figure 1", "hundreds of realisations estimate the expected loss poorly, already at rate .05 "
              "(error of the mean of 300, as a share of the expected loss)", "poor (no number stated)"),
        Claim("poor-penalty", "Figure 1", "the same, as a share of what dropout adds to the loss: the regulariser itself",
              "poor (no number stated)"),
        Claim("slope", "Appendix A", "the error falls no faster than 1/sqrt(N) (slope in log-log)", "-0.5"),
        Claim("variance", "the exact variance", "it predicts the error (found / predicted, N >= 10)", "1", by_paper=False),
    ),
    needs=lambda settings: ("mnist",),
    libraries=("scikit-learn",),
    settings={
        "laptop": _COMMON | {"rows": 256, "rank": 8, "repeats": 4},
        "paper": _COMMON | {"rows": 4096, "rank": 8, "repeats": 20},
    },
    differs={
        "laptop": "Sizes, rank and the state of A and B are not stated in the paper. Here: at most 256 rows, rank 8, B the "
        "minimiser of the expected loss, W a ridge fit to other rows or zero. Each row has masks of its own, so more rows "
        "make a better estimate. 'Poor' is taken to mean an error above 10 %.",
        "paper": "Sizes, rank and the state of A and B are not stated in the paper. Here: at most 4096 rows, rank 8.",
    },
    plan=plan,
    work=work,
    judge=judge,
    draw=draw_fig1,
)  # fmt: skip
