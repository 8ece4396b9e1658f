"""Figure 3: norms of A and B and the training loss while LoRA tunes a 3-layer MLP on MNIST, by dropout rate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from ..cells import Cell, Key, Result, Settings, results, values
from ..data import StudyData
from ..drawing import axes_grid, mean_curve, rate_colors, save
from ..mlp import LoraMlp, batches, pretrained
from ..study import Claim, Study, both_scales, by_mean, keys

OPTIMIZERS: dict[str, Any] = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
COMMON: Settings = {
    "sizes": [784, 256, 256, 10], "rank": 8, "pretrain_rows": 4096, "pretrain_epochs": 5, "pretrain_lr": 1e-3, "rows": 512,
    "batch": 64, "every": 25, "rates": [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9],
    "optimisers": {"sgd": 0.1, "adam": 1e-3},
}  # fmt: skip


def work(key: Key, settings: Settings, data: StudyData) -> Result:
    """Norms and loss every few steps. All rates of a seed share the base, the initial adapter and the order of rows."""
    x, y = data.mnist("train")
    start = settings["pretrain_rows"]
    x, y = x[start : start + settings["rows"]], y[start : start + settings["rows"]]
    net = LoraMlp(pretrained(data, key["seed"], settings), settings["rank"], torch.Generator().manual_seed(100 + key["seed"]))
    masks = torch.Generator().manual_seed(200 + key["seed"])
    optimizer = OPTIMIZERS[key["optimiser"]](net.parameters, lr=settings["optimisers"][key["optimiser"]])
    order = batches(len(x), settings["batch"], settings["steps"], torch.Generator().manual_seed(300 + key["seed"]))
    found: Result = {"steps": [], "A": [], "B": [], "loss": []}

    def look(step: int) -> None:
        with torch.no_grad():
            loss = float(F.cross_entropy(net(x), y))
        for name, value in zip(found, (step, *net.norms(), loss), strict=True):
            found[name].append(value)

    for step, rows in enumerate(order):
        if step % settings["every"] == 0:
            look(step)
        optimizer.zero_grad()
        F.cross_entropy(net(x[rows], key["rate"], masks), y[rows]).backward()
        optimizer.step()
    look(len(order))
    return found


def variation(cells: Sequence[Cell], settings: Settings, factor: str, optimizer: str) -> list[float]:
    """(largest - smallest) / smallest of a factor's final norm over the rates, in percent, per seed."""
    finals = [
        [norms[-1] for norms in values(cells, factor, optimiser=optimizer, seed=seed)] for seed in range(settings["seeds"])
    ]
    return [100 * (max(final) - min(final)) / min(final) for final in finals]


def claim(factor: str, optimizer: str, label: str) -> Claim:
    """The claim about one factor under one optimizer."""
    amount, number, above, below = {"A": ("about 30 %", "30 %", 15, 45), "B": ("more than 500 %", "> 500 %", 500, None)}[factor]
    return Claim(
        f"{factor}-{optimizer}", "Figure 3", f"The final norm of {factor} varies by {amount} between dropout rates ({label}).",
        paper=number,
        judge=by_mean(lambda cells, s: variation(cells, s, factor, optimizer), above=above, below=below, unit=" %"),
    )  # fmt: skip


def draw(cells: Sequence[Cell], settings: Settings, path: Path) -> None:
    """Norms of A and B and the loss by step, averaged over seeds, a color per rate and a row per optimizer."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    names = {"A": "norm of A", "B": "norm of B", "loss": "training loss"}
    rates = settings["rates"]
    figure, axes = axes_grid(len(settings["optimisers"]), 3, size=(3.2, 2.5))
    for row, optimizer in zip(axes, settings["optimisers"], strict=True):
        for rate, color in zip(rates, rate_colors(rates), strict=True):
            found = results(cells, optimiser=optimizer, rate=rate)
            for ax, name in zip(row, names, strict=True):
                ax.plot(found[0]["steps"], mean_curve(r[name] for r in found), lw=1, color=color)
        for ax, (name, label) in zip(row, names.items(), strict=True):
            ax.set_title(f"{label} ({optimizer})", fontsize=9)
            ax.set_xlabel("step", fontsize=8)
            if name == "loss":
                ax.set_yscale("log")
    colors = ScalarMappable(Normalize(0, max(rates) / 0.95), "viridis")
    figure.colorbar(colors, ax=axes, label="dropout rate", pad=0.01).ax.tick_params(labelsize=7)
    save(figure, path)


STUDY = Study(
    name="fig3",
    claims=[claim(factor, optimizer, label) for optimizer, label in (("sgd", "SGD"), ("adam", "Adam")) for factor in "AB"],
    settings={"laptop": COMMON | {"seeds": 5, "steps": 400}, "paper": COMMON | {"seeds": 10, "steps": 2000}},
    differs=both_scales(
        "The paper does not state widths, rank, optimizer, rates and steps; 4096 and 512 images are those of Figure 4. Here: "
        "rates up to .9, SGD with learning rate .1 and Adam with 1e-3, norms over all three layers together. 'About 30 %' is "
        "taken to mean 15 to 45 %. The loss is measured without dropout on the 512 images."
    ),
    plan=lambda s: keys(optimiser=s["optimisers"], rate=s["rates"], seed=range(s["seeds"])),
    work=work,
    draw=draw,
    needs=lambda settings: ("mnist",),
)
