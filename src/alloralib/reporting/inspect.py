"""The row norms of BA of an adapter, layer by layer, as a picture. Imports no torch."""

from __future__ import annotations

import os
import re
from typing import Any


def draw_adapter(inspection: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Draw the mean (dot) and largest (tick) row norm of BA of every layer, in one color per kind of module.

    Args:
        inspection: `Inspection.to_dict()` of `alloralib.export.inspect`.
        path: the file to write: .png, .pdf or .svg.
    """
    from matplotlib.figure import Figure  # not pyplot, which opens windows and has global state
    from matplotlib.ticker import MaxNLocator

    groups: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    for place, layer in enumerate(inspection["layers"]):
        depth, kind = position(layer["name"])
        groups.setdefault(kind, []).append((place if depth is None else depth, layer))
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.subplots()
    for number, (kind, found) in enumerate(groups.items()):
        places = [place for place, _ in found]
        means, largest = [layer["mean_row"] for _, layer in found], [layer["max_row"] for _, layer in found]
        color = f"C{number % 10}"
        axes.vlines(places, means, largest, color=color, lw=0.8, alpha=0.5)
        axes.plot(places, means, "o-", ms=3.5, lw=0.8, color=color, label=kind)
        axes.plot(places, largest, "_", ms=6, color=color)
    axes.set_xlabel("layer")
    axes.set_ylabel("row norm of BA: mean (dot), largest (tick)")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    if len(groups) <= 12:
        axes.legend(frameon=False, ncols=2, fontsize=8)
    eta = "" if inspection["eta"] is None else f", η = {inspection['eta']:g}"
    axes.set_title(f"{inspection['method']}, r = {inspection['r']}{eta}", loc="left")
    figure.savefig(path, dpi=150)


def position(name: str) -> tuple[int | None, str]:
    """The number of a layer in the stack and the kind of its module, from its name.

    >>> position("model.layers.11.self_attn.q_proj")
    (11, 'q_proj')
    >>> position("model.embed_tokens")
    (None, 'embed_tokens')
    """
    number = re.search(r"\.(\d+)\.", name)
    kind = ".".join(part for part in name.rpartition(".")[2:] if part)
    return (None if number is None else int(number[1])), kind
