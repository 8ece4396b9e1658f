"""Figure 3: norms of A and B and the training loss, while LoRA tunes a 3-layer MLP on MNIST, by dropout rate."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F

from ..reporting.study_figures import draw_fig3
from .frame import Cell, Claim, Finding, Key, Result, Settings, Study, judged, select
from .images import StudyData
from .mlp import LoraMlp, Mlp, batches

OPTIMISERS = {
    "sgd": lambda parameters, lr: torch.optim.SGD(parameters, lr=lr),
    "adam": lambda parameters, lr: torch.optim.Adam(parameters, lr=lr),
}

_COMMON: Settings = {
    "sizes": [784, 256, 256, 10], "rank": 8, "pretrain_rows": 4096, "pretrain_epochs": 5, "pretrain_lr": 1e-3, "rows": 512,
    "batch": 64, "every": 25, "rates": [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9],
    "optimisers": {"sgd": 0.1, "adam": 1e-3},
}  # fmt: skip


def plan(settings: Settings) -> list[Key]:
    """A cell per optimiser, rate and seed."""
    return [
        {"optimiser": o, "rate": r, "seed": s}
        for o in settings["optimisers"]
        for r in settings["rates"]
        for s in range(settings["seeds"])
    ]


def work(key: Key, settings: Settings, data: StudyData) -> Result:
    """Norms and loss every so many steps. All rates of a seed share base, init and order of rows."""
    x, y = data.mnist("train")
    start = settings["pretrain_rows"]
    x, y = x[start : start + settings["rows"]], y[start : start + settings["rows"]]
    base = pretrained(data, key["seed"], tuple(settings["sizes"]), start, settings["pretrain_epochs"], settings["pretrain_lr"])
    net = LoraMlp(base, settings["rank"], torch.Generator().manual_seed(100 + key["seed"]))
    masks = torch.Generator().manual_seed(200 + key["seed"])
    optimiser = OPTIMISERS[key["optimiser"]](net.parameters, settings["optimisers"][key["optimiser"]])
    order = batches(len(x), settings["batch"], settings["steps"], torch.Generator().manual_seed(300 + key["seed"]))
    steps, A, B, losses = [], [], [], []
    for step, rows in enumerate(order):
        if step % settings["every"] == 0:
            _look(net, x, y, step, steps, A, B, losses)
        optimiser.zero_grad()
        F.cross_entropy(net(x[rows], key["rate"], masks), y[rows]).backward()
        optimiser.step()
    _look(net, x, y, len(order), steps, A, B, losses)
    return {"steps": steps, "A": A, "B": B, "loss": losses}


@lru_cache(maxsize=8)
def pretrained(data: StudyData, seed: int, sizes: tuple[int, ...], rows: int, epochs: int, lr: float) -> Mlp:
    """The base of a seed: Adam on the first `rows` images."""
    g = torch.Generator().manual_seed(seed)
    x, y = data.mnist("train")
    base = Mlp(list(sizes), g)
    base.fit(x[:rows], y[:rows], epochs=epochs, batch=64, lr=lr, generator=g)
    return base


def judge(cells: Sequence[Cell], settings: Settings) -> list[Finding]:
    """(largest - smallest) / smallest of the final norms over the rates, per seed; an interval over seeds."""
    found = []
    for optimiser in settings["optimisers"]:
        for name, limits in (("A", {"above": 15, "below": 45}), ("B", {"above": 500})):
            values = []
            for seed in range(settings["seeds"]):
                final = [c.result[name][-1] for c in select(cells, optimiser=optimiser, seed=seed)]
                values.append(100 * (max(final) - min(final)) / min(final))
            found.append(judged(f"{name}-{optimiser}", values, unit=" %", over="seeds", **limits))
    return found


def _look(net: LoraMlp, x, y, step: int, steps: list, A: list, B: list, losses: list) -> None:
    a, b = net.norms()
    with torch.no_grad():
        loss = float(F.cross_entropy(net(x), y))
    steps.append(step)
    A.append(a)
    B.append(b)
    losses.append(loss)


STUDY = Study(
    name="fig3",
    title="norms of A and B, and the loss, by dropout rate",
    claims=tuple(
        Claim(
            f"{name}-{optimiser}",
            "Figure 3",
            f"over the dropout rates the final norm of {name} varies by {amount} ({label})",
            number,
        )
        for optimiser, label in (("sgd", "SGD"), ("adam", "Adam"))
        for name, amount, number in (("A", "about 30 %", "30 %"), ("B", "more than 500 %", "> 500 %"))
    ),
    needs=lambda settings: ("mnist",),
    settings={"laptop": _COMMON | {"seeds": 5, "steps": 400}, "paper": _COMMON | {"seeds": 10, "steps": 2000}},
    differs=dict.fromkeys(
        ("laptop", "paper"),
        "Widths, rank, optimiser, rates and steps are not stated in the paper; 4096 and 512 images are Figure 4's. Rates up "
        "to .9, SGD at .1 and Adam at 1e-3; norms over all three layers together; 'about 30 %' is taken to mean 15 to 45 %. "
        "The loss is without dropout, on the 512 images.",
    ),
    plan=plan,
    work=work,
    judge=judge,
    draw=draw_fig3,
)
