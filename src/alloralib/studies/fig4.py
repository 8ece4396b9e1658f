"""Figure 4: what it costs to train on one realisation of dropout instead of on the expected loss.

Test loss of the sampled run minus that of the expected run, by step; base, init and order of rows are shared. With ReLU and
cross-entropy the expected loss has no closed form: it is averaged over many masks. Where it has one (an adapter on the last
layer, squared loss) both are run, to see that the average is good enough.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.dropout_theory import expected_loss
from ..reporting.study_figures import draw_fig4
from .fig3 import pretrained
from .frame import Cell, Claim, Finding, Key, Result, Settings, Study, judged, rounded, select
from .images import StudyData
from .mlp import LoraMlp, batches

_COMMON: Settings = {
    "sizes": [784, 256, 256, 10], "rank": 8, "pretrain_rows": 4096, "pretrain_epochs": 5, "pretrain_lr": 1e-3, "rows": 512,
    "test_rows": 2000, "batch": 64, "lr": 1e-3, "rates": [0.1, 0.3, 0.5], "every": 50,
}  # fmt: skip


def plan(settings: Settings) -> list[Key]:
    """Sampled and expected per rate and seed; and where both exist, exact, averaged and sampled at the largest rate."""
    seeds, top = range(settings["seeds"]), max(settings["rates"])
    pairs = [(r, s, m) for r in settings["rates"] for s in seeds for m in ("sampled", "averaged")]
    keys: list[Key] = [{"case": "all layers", "rate": r, "seed": s, "loss": m} for r, s, m in pairs]
    return keys + [
        {"case": "last layer", "rate": top, "seed": s, "loss": m} for s in seeds for m in ("exact", "averaged", "sampled")
    ]


def work(key: Key, settings: Settings, data: StudyData) -> Result:
    """Test loss every so many steps."""
    x, y = data.mnist("train")
    start, test_rows = settings["pretrain_rows"], settings["test_rows"]
    x, y = x[start : start + settings["rows"]], y[start : start + settings["rows"]]
    test_x, test_y = (part[:test_rows] for part in data.mnist("test"))
    base = pretrained(data, key["seed"], tuple(settings["sizes"]), start, settings["pretrain_epochs"], settings["pretrain_lr"])
    last = len(base.W) - 1
    alone = key["case"] == "last layer"
    net = LoraMlp(base, settings["rank"], torch.Generator().manual_seed(100 + key["seed"]), [last] if alone else None)
    masks = torch.Generator().manual_seed(200 + key["seed"])
    optimiser = torch.optim.Adam(net.parameters, lr=settings["lr"])
    steps = settings["last_layer_steps"] if alone else settings["steps"]
    order = batches(len(x), settings["batch"], steps, torch.Generator().manual_seed(300 + key["seed"]))
    count = settings["masks"] if key["loss"] == "averaged" else 1
    found: Result = {"steps": [], "test_loss": []}
    for step in range(steps + 1):
        if step % settings["every"] == 0:
            with torch.no_grad():
                found["steps"].append(step)
                found["test_loss"].append(float(_loss(net(test_x), test_y, alone)))
        if step < steps:
            rows = order[step]
            optimiser.zero_grad()
            if key["loss"] == "exact":
                loss = _exact(net, x[rows], y[rows], key["rate"])
            else:
                loss = _loss(net(x[rows], key["rate"], masks, count), y[rows], alone)
            loss.backward()
            optimiser.step()
    return found


def judge(cells: Sequence[Cell], settings: Settings) -> list[Finding]:
    """Size of the gap by rate; when it peaks; whether it falls after; its sign; and averaged against exact training."""
    seeds, rates = range(settings["seeds"]), settings["rates"]
    gaps = {(r, s): gap(cells, r, s) for r in rates for s in seeds}
    sizes = {where: [abs(v) for v in values] for where, values in gaps.items()}
    top, steps = max(rates), select(cells, case="all layers")[0].result["steps"]
    grows = [max(sizes[top, s]) - max(sizes[min(rates), s]) for s in seeds]
    peaks, falls = [], []
    for s in seeds:
        others = [sum(v) for v in zip(*(sizes[top, o] for o in seeds if o != s), strict=True)]
        peak = others.index(max(others))  # chosen on the other seeds: its own maximum would lie above its end by chance alone
        own = sizes[top, s]
        peaks.append(float(steps[own.index(max(own))]))
        falls.append(own[peak] - own[-1])
    apart = []
    for s in seeds:
        exact, averaged = (
            select(cells, case="last layer", seed=s, loss=m)[0].result["test_loss"] for m in ("exact", "averaged")
        )
        apart.append(100 * max(abs(a / e - 1) for a, e in zip(averaged, exact, strict=True)))
    return [
        judged("grows", grows, above=0, over="seeds"),
        judged("peaks", peaks, above=100, below=900, over="seeds"),
        judged("falls", falls, above=0, over="seeds"),
        judged("sign", [gaps[top, s][-1] for s in seeds], above=0, over="seeds"),
        judged("agrees", apart, unit=" %", below=1, over="seeds"),
    ]


def gap(cells: Sequence[Cell], rate: float, seed: int) -> list[float]:
    """Test loss of the sampled run minus that of the expected one, by look."""
    sampled, averaged = (
        select(cells, case="all layers", rate=rate, seed=seed, loss=m)[0].result["test_loss"] for m in ("sampled", "averaged")
    )
    return rounded([a - b for a, b in zip(sampled, averaged, strict=True)])


def _loss(logits: Tensor, y: Tensor, squared: bool) -> Tensor:
    """Mean over rows (and masks) of cross-entropy, or of the squared distance to the one-hot label."""
    if squared:
        return (F.one_hot(y, logits.shape[-1]) - logits).square().sum(-1).mean()
    return F.cross_entropy(logits.flatten(0, -2), y.expand(logits.shape[:-1]).flatten())


def _exact(net: LoraMlp, x: Tensor, y: Tensor, rate: float) -> Tensor:
    """The closed form, for an adapter on the last layer."""
    W, b, last = net.base.W, net.base.b, len(net.base.W) - 1
    for i in range(last):
        x = F.linear(x, W[i], b[i]).relu()
    E = F.one_hot(y, W[last].shape[0]) - F.linear(x, W[last], b[last])
    return expected_loss(E, F.linear(x, net.A[last]), net.B[last].mT, 1 - rate) / len(x)


STUDY = Study(
    name="fig4",
    title="test loss of training on the expected against the sampled dropout loss",
    claims=(
        Claim("grows", "Figure 4", "the size of the gap grows with the rate (largest at .5 minus at .1)", "above 0"),
        Claim("peaks", "Figure 4", "it peaks after a few hundred steps (step of the largest at .5)", "a few hundred"),
        Claim("falls", "Figure 4", "then it falls (at the other seeds' peak minus at the end, .5)", "above 0"),
        Claim(
            "sign",
            "flaw 1",
            "training on samples is the worse one (test loss, sampled - expected, at the end, .5)",
            "not known",
            by_paper=False,
        ),
        Claim(
            "agrees",
            "check",
            "averaging over masks trains as the closed form does (largest distance of test losses)",
            "0",
            by_paper=False,
        ),
    ),
    needs=lambda settings: ("mnist",),
    settings={
        "laptop": _COMMON | {"seeds": 5, "masks": 64, "steps": 1000, "last_layer_steps": 500},
        "paper": _COMMON | {"seeds": 10, "masks": 256, "steps": 5000, "last_layer_steps": 5000},
    },
    differs=dict.fromkeys(
        ("laptop", "paper"),
        "3 layers, 4096 and 512 images are the paper's; widths, rank, optimiser (here Adam at 1e-3), batch and rates are not "
        "stated. 'A few hundred' is taken to mean 100 to 900. Test loss without dropout on the first 2000 test images. The "
        "expected loss is an average over 64 masks at laptop scale, 256 at paper scale. The gap's sign "
        "is not known to us, so its size is judged, and its sign by itself. Changed after a first look, which had 16 masks, "
        "averaged training within 2.2 % of exact training, and the signed gap judged (grows, peaks: inconclusive; falls: "
        "confirmed).",
    ),
    plan=plan,
    work=work,
    judge=judge,
    draw=draw_fig4,
)
