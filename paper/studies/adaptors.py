"""Other adaptor functions, which the paper names as future work: does it matter how the scale falls with the row norm?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from alloralib.ops.scale import adaptor, paper_adaptor

from ..cells import Cell, Key, Result, Settings, values
from ..classify import LIBRARIES, classify, data_sets
from ..data import StudyData
from ..drawing import axes_grid, draw_dots, save
from ..study import Claim, Study, both_scales, by_mean, keys, minus

PAPERS = "1/sqrt(n + 1/eta^2)"
ADAPTORS: dict[str, Callable[[Tensor, float], Tensor]] = {
    PAPERS: paper_adaptor,
    "1/(n + 1/eta)": lambda n, eta: eta / (1 + eta * n),
    "1/sqrt(n^2 + 1/eta^2)": lambda n, eta: eta / torch.sqrt(1 + (eta * n) ** 2),
    "eta exp(-eta^2 n/2)": lambda n, eta: eta * torch.exp(-(eta**2) * n / 2),
    "eta, no taper": torch.full_like,
}
"""All equal eta at n = 0; the exponential also has the slope of the paper's function there."""
OTHERS = tuple(name for name in ADAPTORS if name != PAPERS)
PLACES = ("gradient", "update")


def work(key: Key, settings: Settings, data: StudyData) -> Result:
    """One run with another function in place of the paper's."""
    with adaptor(ADAPTORS[key["adaptor"]]):
        own = {"method": "allora", "eta": settings["eta"], "apply_to": key["apply_to"], "seed": key["seed"]}
        return classify(settings["run"] | own, data)


def over_papers(cells: Sequence[Cell], name: str, apply_to: str) -> list[float]:
    """The accuracy with a function minus that with the paper's, per seed."""
    return minus(*(values(cells, "accuracy", adaptor=a, apply_to=apply_to) for a in (name, PAPERS)))


def draw(cells: Sequence[Cell], settings: Settings, path: Path) -> None:
    """The accuracy with every function: dots are seeds, bars their mean; a panel for the gradient and one for the update."""
    figure, axes = axes_grid(1, 2, size=(4.2, 3))
    for ax, apply_to in zip(axes[0], PLACES, strict=True):
        for number, name in enumerate(ADAPTORS):
            draw_dots(ax, number, values(cells, "accuracy", adaptor=name, apply_to=apply_to), f"C{number}", name)
        ax.set_xticks([])
        ax.set_title(f"accuracy, %, rule on the {apply_to}", fontsize=9)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=6.5)
    save(figure, path)


STUDY = Study(
    name="adaptors",
    claims=[
        Claim(f"{apply_to}: {name}", "future work of the paper", f"s = {name} on the {apply_to} is more accurate than the "
              "paper's function.", "not measured",
              by_mean(lambda cells, s, name=name, to=apply_to: over_papers(cells, name, to), unit=" points", above=0),
              by_paper=False)
        for apply_to in PLACES
        for name in OTHERS
    ],
    settings={
        "laptop": {
            "eta": 4.0, "seeds": 5,
            "run": {
                "model": "minilm-l6", "data": "trec", "train_rows": 128, "test_rows": 300, "r": 16, "batch_size": 8,
                "epochs": 2, "learning_rate": 3e-3, "max_length": 48,
            },
        },
        "paper": {
            "eta": 4.0, "seeds": 5,
            "run": {
                "model": "Snowflake/snowflake-arctic-embed-l", "data": "emotion", "r": 32, "batch_size": 64, "epochs": 2,
                "learning_rate": 1e-4, "max_length": 256,
            },
        },
    },
    differs=both_scales(
        "A question of our own. Adafactor and cosine schedule as in Table 6 here; eta = 4, where tapering has an effect."
    ),
    plan=lambda s: keys(adaptor=ADAPTORS, apply_to=PLACES, seed=range(s["seeds"])),
    work=work,
    draw=draw,
    needs=data_sets,
    libraries=LIBRARIES,
)  # fmt: skip
