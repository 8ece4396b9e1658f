"""`allora inspect`: what an adapter is."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

HELP = "say what an adapter is, layer by layer"
DESCRIPTION = """\
Say what an adapter is: method, rank, targets, size, and how large its factors are, layer by layer.

  allora inspect runs/tweets
  allora inspect runs/tweets --model smollm2-135m --picture norms.png

Only the adapter's own files are read. With --model the base's weights are read too, for the ripple bound
(arXiv:2410.09692, Proposition 1)."""


def flags() -> list[str]:
    """All flags, for the nearest name to a misspelt one."""
    return ["--model", "--json", "--picture"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("adapter", metavar="ADAPTER", help="directory of a run or of a saved adapter")
    parser.add_argument("--model", metavar="MODEL", help="the base, for the ripple bound: a directory or a bundled model")
    parser.add_argument("--json", action="store_true", help="print everything as JSON on standard output")
    parser.add_argument("--picture", metavar="FILE", help="draw the row norms of BA by layer (.png, .pdf, .svg)")


def run(arguments: argparse.Namespace) -> int:
    """Inspect, and say what is there."""
    from ..errors import ConfigError
    from ..export.inspect import inspect_adapter

    picture = None if arguments.picture is None else Path(arguments.picture)
    if picture is not None and picture.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise ConfigError(f"unknown kind of picture {picture.suffix!r}", where=str(picture), remedy="use .png, .pdf or .svg")
    if picture is not None and not picture.parent.is_dir():
        raise ConfigError("no such directory", where=str(picture.parent), remedy="make it first, or give another --picture")
    base = None
    if arguments.model is not None:
        from ..training.models import locate

        base = Path(locate(arguments.model))
    found = inspect_adapter(Path(arguments.adapter), base).to_dict()
    if picture is not None:
        from ..reporting.inspect import draw_adapter

        draw_adapter(found, picture)
    print(json.dumps(found) if arguments.json else summary(found))
    return 0


def summary(found: dict[str, Any]) -> str:
    """A page for a person."""
    knobs = [f"r = {found['r']}"]
    knobs += [] if found["eta"] is None else [f"eta = {found['eta']:g}", f"applied to the {found['apply_to']}"]
    lines = [
        f"{found['method']} ({', '.join(knobs)}) for {found['base'] or 'a base it does not name'}",
        f"{found['parameters']:,} parameters in {len(found['layers'])} layers, {found['bytes'] / 2**20:.1f} MiB; "
        f"targets: {', '.join(found['targets'])}",
    ]
    if found["modules_to_save"]:
        lines.append(f"trained in full beside it: {', '.join(found['modules_to_save'])}")
    if not found["trained"]:
        lines.append("untrained: BA = 0 in every layer, so it computes what the base computes")
    width = max(len("layer"), *(len(layer["name"]) for layer in found["layers"]))
    lines += ["", f"{'layer':<{width}}     |A|     |B|  mean row  max row  smallest s"]
    for layer in found["layers"]:
        smallest = "       -" if layer["smallest_scale"] is None else f"{layer['smallest_scale']:8.3f}"
        lines.append(
            f"{layer['name']:<{width}} {layer['norm_A']:7.3f} {layer['norm_B']:7.3f}  {layer['mean_row']:8.4f} "
            f"{layer['max_row']:8.4f}    {smallest}"
        )
    if found["ripple"] is not None:
        ripple = found["ripple"]
        lines += [
            "",
            f"ripple bound over {ripple['layers']:.0f} layers: the adapter may multiply what goes through by up to "
            f"{ripple['growth']:.4g}",
            f"  mean |BA|/|W| {ripple['mean_ratio']:.4f}; log of the bound {ripple['log_product']:.2f} "
            f"({ripple['log_mean']:.2f} from the mean), of which {ripple['log_base']:.2f} is the base's own",
            "  a worst case: it is reached only where every layer stretches the same direction",
        ]
    return "\n".join(lines)
