"""The property that the data of every run must have, computed independently of the code that ensures it."""

import re

from alloralib.data.forms import Columns, Kind
from alloralib.data.parts import Parts
from alloralib.data.table import Table


def shown(kind: Kind, columns: Columns, table: Table) -> list[str]:
    """What the model is shown in each row, without case and white space: a twin of `example_keys` for text."""
    names = {"multiple-choice": ("prompt", "choices")}.get(kind, ("text", "text_pair", "prompt"))
    used = [name for part in names if (name := getattr(columns, part)) is not None]
    return [
        "|".join(re.sub(r"\s+", " ", str(table.columns[name][row])).strip().lower() for name in used)
        for row in range(len(table))
    ]


def check_no_leak(kind: Kind, columns: Columns, parts: Parts) -> None:
    """No example is in two parts, and none twice in train, except a prompt with several completions."""
    keys = {name: shown(kind, columns, t) for name, t in vars(parts).items() if isinstance(t, Table)}
    names = list(keys)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            assert not set(keys[one]) & set(keys[other]), f"{one} and {other} share examples"
    if columns.completion is None:
        assert len(set(keys["train"])) == len(keys["train"]), "train repeats examples"
