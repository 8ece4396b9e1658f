"""`allora inspect`: the settings of an adapter, and the size of its factors layer by layer."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from .arguments import add_json

HELP = "describe an adapter, layer by layer"
DESCRIPTION = """\
Describe an adapter: method, rank, targets, size, and the norms of its factors layer by layer.

  allora inspect runs/tweets
  allora inspect runs/tweets --model smollm2-135m --picture norms.png

Only the files of the adapter are read. With --model the weights of the base are read too, for the ripple bound
(arXiv:2410.09692, Proposition 1)."""

_FORMATS = (".png", ".pdf", ".svg")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("adapter", metavar="ADAPTER", help="directory of a run or of a saved adapter")
    parser.add_argument("--model", metavar="MODEL", help="the base model, for the ripple bound: a directory or a bundled model")
    parser.add_argument("--picture", metavar="FILE", help="draw the row norms of BA by layer (.png, .pdf, .svg)")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Inspect, and print the description."""
    from ..errors import ConfigError
    from ..export.inspect import inspect_adapter

    picture = None if arguments.picture is None else Path(arguments.picture)
    if picture is not None and picture.suffix.lower() not in _FORMATS:
        raise ConfigError(f"unknown kind of picture {picture.suffix!r}", where=str(picture), remedy="use .png, .pdf or .svg")
    if picture is not None and not picture.parent.is_dir():
        raise ConfigError("no such directory", where=str(picture.parent), remedy="create it first, or give another --picture")
    base = None
    if arguments.model is not None:
        from ..training.models import locate

        base = Path(locate(arguments.model))
    inspection = inspect_adapter(Path(arguments.adapter), base).to_dict()
    if picture is not None:
        from ..reporting.inspect import draw_adapter

        draw_adapter(inspection, picture)
    print(json.dumps(inspection) if arguments.json else summary(inspection))
    return 0


def summary(inspection: dict[str, Any]) -> str:
    """The description as text: the settings, a line per layer, and the ripple bound."""
    eta = "" if inspection["eta"] is None else f", eta = {inspection['eta']:g}, applied to the {inspection['apply_to']}"
    lines = [
        f"{inspection['method']} (r = {inspection['r']}{eta}) for {inspection['base'] or 'an unnamed base'}",
        f"{inspection['parameters']:,} parameters in {len(inspection['layers'])} layers, "
        f"{inspection['bytes'] / 2**20:.1f} MiB; targets: {', '.join(inspection['targets'])}",
    ]
    if inspection["modules_to_save"]:
        lines.append(f"fully trained modules: {', '.join(inspection['modules_to_save'])}")
    lines.append(inspection["loads"])
    if not inspection["trained"]:
        lines.append("untrained: BA = 0 in every layer, so it computes what the base computes")
    width = max(len("layer"), *(len(layer["name"]) for layer in inspection["layers"]))
    lines += ["", f"{'layer':<{width}}     |A|     |B|  mean row  max row  smallest s"]
    for layer in inspection["layers"]:
        smallest = "       -" if layer["smallest_scale"] is None else f"{layer['smallest_scale']:8.3f}"
        lines.append(
            f"{layer['name']:<{width}} {layer['norm_A']:7.3f} {layer['norm_B']:7.3f}  {layer['mean_row']:8.4f} "
            f"{layer['max_row']:8.4f}    {smallest}"
        )
    if inspection["ripple"] is not None:
        ripple = inspection["ripple"]
        lines += [
            "",
            f"ripple bound over {ripple['layers']:.0f} layers: the adapter multiplies a perturbation by at most "
            f"{ripple['growth']:.4g}",
            f"  mean |BA|/|W| {ripple['mean_ratio']:.4f}; log of the bound {ripple['log_product']:.2f} "
            f"({ripple['log_mean']:.2f} from the mean), of which {ripple['log_base']:.2f} is the base's own",
            "  a worst case: reached only if every layer stretches the same direction",
        ]
    return "\n".join(lines)
