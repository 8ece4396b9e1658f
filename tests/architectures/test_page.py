"""docs/models.md lists what the tests of this directory run, no more and no less."""

import re
from pathlib import Path

from .models import CLASSIFIERS, IMAGE_CLASSIFIERS, LANGUAGE_MODELS, OTHER_CLASSIFIERS, OTHER_LANGUAGE_MODELS
from .runs import ALL_LOGITS, CASES, WITH_PADDING

PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
TASKS = ("classifier", "language model", "image classifier")


def table() -> str:
    lines = ["| architecture | classifier | language model | image classifier | skips padding | loss in chunks |"]
    lines.append("|---|---|---|---|---|---|")
    names = CLASSIFIERS | LANGUAGE_MODELS | OTHER_CLASSIFIERS | OTHER_LANGUAGE_MODELS | IMAGE_CLASSIFIERS
    for name in names:
        tested = [f"{name}, {task}" in CASES for task in TASKS]
        skips = "" if name in IMAGE_CLASSIFIERS else "no" if name in WITH_PADDING else "yes"
        chunks = "" if not tested[1] else "no" if name in ALL_LOGITS else "yes"
        cells = ["yes" if yes else "" for yes in tested] + [skips, chunks]
        lines.append(f"| {name} | {' | '.join(cells)} |".replace("  ", " "))
    for name in CASES:
        architecture, task = name.rsplit(", ", 1)
        if architecture not in names:
            cells = ["yes" if task == column else "" for column in TASKS]
            lines.append(f"| {architecture} | {' | '.join(cells)} | yes | {'yes' if cells[1] else ''} |".replace("  ", " "))
    return "\n".join(lines)


def test_the_table_is_what_is_tested() -> None:
    found = re.search(r"<!-- models -->\n(.*?)\n<!-- /models -->", PAGE, re.S)
    assert found
    assert found[1] == table()
    assert len(CLASSIFIERS) == 12
    assert len(LANGUAGE_MODELS) == 8
