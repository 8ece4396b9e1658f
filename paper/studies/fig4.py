"""Figure 4: what it costs to train on one dropout mask per step instead of on the expected loss.

The test loss of the sampled run minus that of the expected run, by step. Both share base, initial adapter and order of rows.
With ReLU and cross-entropy the expected loss has no closed form, so it is averaged over many masks. For an adapter on the last
layer and squared loss it has one; there both are run, to see whether the average is good enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cells import Cell, Key, Result, Settings, results, rounded, values
from ..data import StudyData
from ..drawing import axes_grid, mean_curve, rate_colors, save
from ..dropout_theory import expected_loss
from ..mlp import LoraMlp, batches, pretrained
from ..study import Claim, Study, both_scales, by_mean, keys, minus

COMMON: Settings = {
    "sizes": [784, 256, 256, 10], "rank": 8, "pretrain_rows": 4096, "pretrain_epochs": 5, "pretrain_lr": 1e-3, "rows": 512,
    "test_rows": 2000, "batch": 64, "lr": 1e-3, "rates": [0.1, 0.3, 0.5], "every": 50,
}  # fmt: skip


def plan(settings: Settings) -> list[Key]:
    """All layers: sampled and averaged, by rate. Last layer, at the largest rate: exact, averaged and sampled."""
    seeds = range(settings["seeds"])
    every = keys(case=["all layers"], rate=settings["rates"], seed=seeds, loss=["sampled", "averaged"])
    return every + keys(case=["last layer"], rate=[max(settings["rates"])], seed=seeds, loss=["exact", "averaged", "sampled"])


def work(key: Key, settings: Settings, data: StudyData) -> Result:
    """The test loss every few steps."""
    x, y = data.mnist("train")
    start, test_rows = settings["pretrain_rows"], settings["test_rows"]
    x, y = x[start : start + settings["rows"]], y[start : start + settings["rows"]]
    test_x, test_y = (part[:test_rows] for part in data.mnist("test"))
    base = pretrained(data, key["seed"], settings)
    alone = key["case"] == "last layer"
    layers = [len(base.W) - 1] if alone else None
    net = LoraMlp(base, settings["rank"], torch.Generator().manual_seed(100 + key["seed"]), layers)
    masks = torch.Generator().manual_seed(200 + key["seed"])
    optimizer = torch.optim.Adam(net.parameters, lr=settings["lr"])
    steps = settings["last_layer_steps"] if alone else settings["steps"]
    order = batches(len(x), settings["batch"], steps, torch.Generator().manual_seed(300 + key["seed"]))
    count = settings["masks"] if key["loss"] == "averaged" else 1
    found: Result = {"steps": [], "test_loss": []}
    for step in range(steps + 1):
        if step % settings["every"] == 0:
            with torch.no_grad():
                found["steps"].append(step)
                found["test_loss"].append(float(mean_loss(net(test_x), test_y, alone)))
        if step < steps:
            rows = order[step]
            optimizer.zero_grad()
            if key["loss"] == "exact":
                loss = exact_loss(net, x[rows], y[rows], key["rate"])
            else:
                loss = mean_loss(net(x[rows], key["rate"], masks, count), y[rows], alone)
            loss.backward()
            optimizer.step()
    return found


def mean_loss(logits: Tensor, y: Tensor, squared: bool) -> Tensor:
    """The mean over rows (and masks) of the cross-entropy, or of the squared distance to the one-hot label."""
    if squared:
        return (F.one_hot(y, logits.shape[-1]) - logits).square().sum(-1).mean()
    return F.cross_entropy(logits.flatten(0, -2), y.expand(logits.shape[:-1]).flatten())


def exact_loss(net: LoraMlp, x: Tensor, y: Tensor, rate: float) -> Tensor:
    """The expected squared loss in closed form, for an adapter on the last layer."""
    W, b, last = net.base.W, net.base.b, len(net.base.W) - 1
    for i in range(last):
        x = F.linear(x, W[i], b[i]).relu()
    E = F.one_hot(y, W[last].shape[0]) - F.linear(x, W[last], b[last])
    return expected_loss(E, F.linear(x, net.A[last]), net.B[last].mT, 1 - rate) / len(x)


def gaps(cells: Sequence[Cell], rate: float) -> list[list[float]]:
    """The test loss of the sampled run minus that of the averaged one, by step, per seed."""
    sampled, averaged = (values(cells, "test_loss", case="all layers", rate=rate, loss=m) for m in ("sampled", "averaged"))
    return [rounded(minus(s, a)) for s, a in zip(sampled, averaged, strict=True)]


def sizes(cells: Sequence[Cell], rate: float) -> list[list[float]]:
    """The size of the gap, by step, per seed."""
    return [[abs(v) for v in gap] for gap in gaps(cells, rate)]


def grows(cells: Sequence[Cell], settings: Settings) -> list[float]:
    """The largest gap at the highest rate minus the largest at the lowest, per seed."""
    high, low = (map(max, sizes(cells, choose(settings["rates"]))) for choose in (max, min))
    return minus(high, low)


def peaks(cells: Sequence[Cell], settings: Settings) -> list[float]:
    """The step of the largest gap at the highest rate, per seed."""
    steps = results(cells, case="all layers")[0]["steps"]
    return [float(steps[gap.index(max(gap))]) for gap in sizes(cells, max(settings["rates"]))]


def falls(cells: Sequence[Cell], settings: Settings) -> list[float]:
    """The gap at its peak minus the gap at the end, per seed, at the highest rate.

    The step of the peak is chosen on the other seeds: a curve's own maximum lies above its end by chance alone.
    """
    found = sizes(cells, max(settings["rates"]))
    falls = []
    for own in found:
        others = [sum(v) for v in zip(*(gap for gap in found if gap is not own), strict=True)]
        falls.append(own[others.index(max(others))] - own[-1])
    return falls


def averaged_against_exact(cells: Sequence[Cell], settings: Settings) -> list[float]:
    """The largest distance between the test losses of averaged and exact training, in percent, per seed."""
    pairs = zip(*(values(cells, "test_loss", case="last layer", loss=m) for m in ("averaged", "exact")), strict=True)
    return [100 * max(abs(a / e - 1) for a, e in zip(averaged, exact, strict=True)) for averaged, exact in pairs]


def draw(cells: Sequence[Cell], settings: Settings, path: Path) -> None:
    """Left: the gap by step, a color per rate, thin lines are seeds. Right: exact, averaged and sampled on the last layer."""
    figure, axes = axes_grid(1, 2, size=(4.2, 3))
    left, right = axes[0]
    steps = results(cells, case="all layers")[0]["steps"]
    for rate, color in zip(settings["rates"], rate_colors(settings["rates"]), strict=True):
        found = gaps(cells, rate)
        for gap in found:
            left.plot(steps, gap, lw=0.5, alpha=0.4, color=color)
        left.plot(steps, mean_curve(found), lw=1.8, color=color, label=f"rate {rate:g}")
    left.axhline(0, color="0.7", lw=0.8)
    left.set_title("test loss, sampled - expected", fontsize=9)
    for name, style in (("exact", "C0-"), ("averaged", "C1--"), ("sampled", "C2:")):
        found = results(cells, case="last layer", loss=name)
        right.plot(found[0]["steps"], mean_curve(r["test_loss"] for r in found), style, label=name)
    right.set_title("last layer, squared loss: test loss", fontsize=9)
    for ax in (left, right):
        ax.set_xlabel("step", fontsize=8)
        ax.legend(frameon=False, fontsize=7)
    save(figure, path)


STUDY = Study(
    name="fig4",
    claims=[
        Claim("grows", "Figure 4", "The size of the gap grows with the dropout rate (largest gap at .5 minus largest at .1).",
              paper="above 0", judge=by_mean(grows, above=0)),
        Claim("peaks", "Figure 4", "The gap peaks after a few hundred steps (step of the largest gap at rate .5).",
              paper="a few hundred", judge=by_mean(peaks, above=100, below=900)),
        Claim("falls", "Figure 4", "Then it falls (gap at the step where the other seeds peak minus gap at the end, rate .5).",
              paper="above 0", judge=by_mean(falls, above=0)),
        Claim("sign", "first flaw", "Training on sampled masks is the worse of the two (test loss, sampled - expected, at the "
              "end, rate .5).", paper="not known", by_paper=False,
              judge=by_mean(lambda cells, s: [gap[-1] for gap in gaps(cells, max(s["rates"]))], above=0)),
        Claim("agrees", "check", "Averaging over masks trains as the closed form does (largest distance of their test losses).",
              paper="0", by_paper=False, judge=by_mean(averaged_against_exact, unit=" %", below=1)),
    ],
    settings={
        "laptop": COMMON | {"seeds": 5, "masks": 64, "steps": 1000, "last_layer_steps": 500},
        "paper": COMMON | {"seeds": 10, "masks": 256, "steps": 5000, "last_layer_steps": 5000},
    },
    differs=both_scales(
        "3 layers, 4096 and 512 images are the paper's. It does not state widths, rank, optimizer (here Adam with 1e-3), batch "
        "size and rates. 'A few hundred' is taken to mean 100 to 900. The test loss is measured without dropout on the first "
        "2000 test images. The expected loss is an average over 64 masks at laptop scale and 256 at paper scale. We do not "
        "know which sign the paper's gap has, so its size is judged, and its sign separately. Changed after a first look, "
        "which used 16 masks (then averaged training came within 2.2 % of exact training) and judged the signed gap (grows, "
        "peaks: inconclusive; falls: confirmed)."
    ),
    plan=plan,
    work=work,
    draw=draw,
    needs=lambda settings: ("mnist",),
)  # fmt: skip
