"""`allora tasks`: the data sets that have a name."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from ..data.bundled import BUNDLED
from ..data.registry import REGISTRY
from .arguments import add_json

HELP = "list the data sets that --data knows by name"
DESCRIPTION = "List the data sets that `allora train --data` knows by name, with their task, metric, source and license."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the registered and the bundled sets."""
    if arguments.json:
        sets = {name: asdict(known) | {"columns": known.columns.named()} for name, known in REGISTRY.items()}
        print(json.dumps(sets, default=dict))
        return 0
    rows = [("name", "task", "metric", "hub", "what it is")]
    rows += [(s.name, s.kind, s.metric, s.hub.id, f"{s.about} ({s.license})") for s in REGISTRY.values()]
    rows += [(name, "classification", "accuracy", "bundled", f"{b.about} ({b.license})") for name, b in BUNDLED.items()]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    for row in rows:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(row[:4], widths, strict=True)), row[4]]))
    return 0
