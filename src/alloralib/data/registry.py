"""Data sets by name: the paper's tasks and those of its lab's harness, each with kind, columns, labels, metric and hub id."""

from __future__ import annotations

from dataclasses import dataclass

from .forms import Columns, Kind


@dataclass(frozen=True)
class RegisteredSet:
    """A data set that a run names, and knows the rest of."""

    name: str
    kind: Kind
    columns: Columns
    labels: tuple[str, ...] | None
    metric: str
    hub: str


REGISTRY: dict[str, RegisteredSet] = {}
