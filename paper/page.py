"""The page of all studies, claim by claim in the order of the paper: HTML with its pictures inlined, or Markdown.

Numbers and verdicts come from the records, words from the studies.
"""

from __future__ import annotations

import base64
import html
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alloralib.errors import RecordError

from .catalogue import TITLES
from .study import Study

TITLE = "The paper's claims, reproduced and judged"
ABOUT = (
    "The paper is Huang & Balestriero, ALLoRA: Adaptive Learning Rate Mitigates LoRA Fatal Flaws, arXiv:2410.09692. A claim is "
    "confirmed if the whole interval satisfies the condition beside it, not confirmed if no part of the interval does, and "
    "inconclusive otherwise. Rows marked 'ours' are checks and questions of our own, which the paper does not claim. The "
    "settings of every study stand below its picture, together with what was changed after a first look at its results. l_b is "
    "the base learning rate. Differences of accuracies are in percentage points."
)
HEAD = ("claim", "where", "paper", "here", "interval", "confirmed if", "verdict")

STYLE = """\
body{font:15px/1.5 system-ui,sans-serif;max-width:1080px;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;width:100%;margin:1em 0;font-size:14px}
td,th{border-bottom:1px solid #ddd;padding:.35em .5em;text-align:left;vertical-align:top}
img{max-width:100%}
.confirmed{color:#176d2c;font-weight:600}.not-confirmed{color:#a61b1b;font-weight:600}.inconclusive{color:#8a6100;font-weight:600}
.small,details{color:#666;font-size:13px}"""


@dataclass(frozen=True)
class Entry:
    """A study on the page; `record` is None if it was not run."""

    study: Study
    record: dict[str, Any] | None

    @property
    def title(self) -> str:
        """The study's title."""
        return TITLES.get(self.study.name, self.study.name)

    def findings(self) -> list[tuple[Any, dict[str, Any]]]:
        """Every claim with its finding.

        Raises:
            RecordError: the record has other claims than the study.
        """
        if self.record is None:
            return []
        found = {finding["claim"]: finding for finding in self.record["findings"]}
        if list(found) != [claim.name for claim in self.study.claims]:
            raise RecordError(
                "the record has other claims than the study", where=self.study.name,
                remedy=f"python -m paper {self.study.name} judges its cells again",
            )  # fmt: skip
        return [(claim, found[claim.name]) for claim in self.study.claims]

    def rows(self) -> list[tuple[str, ...]]:
        """A row per claim, with the columns of HEAD."""
        table = []
        for claim, finding in self.findings():
            where = claim.where if claim.by_paper else f"ours: {claim.where}"
            interval = finding["spread"]
            if finding["low"] != finding["high"]:
                interval = f"{finding['low']:.4g} to {finding['high']:.4g} ({finding['spread']})"
            table.append((claim.text, where, claim.paper, finding["ours"], interval, finding["rule"], finding["verdict"]))
        return table

    def settings(self) -> str:
        """The record's settings and versions, in one line."""
        record = self.record or {}
        return ", ".join(f"{name} {value}" for part in ("settings", "versions") for name, value in record[part].items())


def tally(entries: list[Entry]) -> str:
    """The number of claims by verdict, for the paper's claims and our own separately."""
    said = []
    for by_paper, whose in ((True, "claims of the paper"), (False, "checks and questions of our own")):
        verdicts = [finding["verdict"] for e in entries for claim, finding in e.findings() if claim.by_paper == by_paper]
        counts = ", ".join(f"{verdicts.count(v)} {v}" for v in ("confirmed", "not confirmed", "inconclusive"))
        said.append(f"{len(verdicts)} {whose}: {counts}")
    return f"{'; '.join(said)}. Studies not run: {sum(e.record is None for e in entries)}."


def markdown_page(entries: list[Entry], records: Path, page: Path) -> str:
    """The page as Markdown, with links to the pictures.

    Args:
        entries: the studies, in order.
        records: the directory of records and pictures.
        page: the directory that the page is written to.
    """
    lines = [f"# {TITLE}", "", ABOUT, "", tally(entries), ""]
    for entry in entries:
        if entry.record is None:
            continue
        name = entry.study.name
        picture = Path(os.path.relpath(records / name / f"{name}.png", page)).as_posix()
        scale = entry.record["scale"]
        lines += [f"## {name}: {entry.title}", "", "| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|"]
        lines += ["| " + " | ".join(_cell(value) for value in row) + " |" for row in entry.rows()]
        lines += ["", f"![{name}]({picture})", "", f"What differs from the paper: {entry.study.differs[scale]}", ""]
        lines += [f"Run with `python -m paper {name} --scale {scale}`. Settings and versions: {entry.settings()}.", ""]
    missing = [f"- {entry.study.name}: {entry.title}" for entry in entries if entry.record is None]
    if missing:
        lines += ["## Not run", "", *missing, ""]
    return "\n".join(lines)


def html_page(entries: list[Entry], records: Path) -> str:
    """The page as a single HTML file that includes its pictures; arguments as in `markdown_page`."""
    e = html.escape
    parts = [
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{e(TITLE)}</title><style>{STYLE}</style>",
        f"<h1>{e(TITLE)}</h1><p>{e(ABOUT)}</p><p><b>{e(tally(entries))}</b></p>",
    ]
    for entry in entries:
        name = entry.study.name
        parts.append(f"<h2 id='{e(name)}'>{e(name)}: {e(entry.title)}</h2>")
        if entry.record is None:
            parts.append("<p class='small'>not run</p>")
            continue
        parts.append("<table><tr>" + "".join(f"<th>{e(h)}</th>" for h in HEAD) + "</tr>")
        for row in entry.rows():
            cells = "".join(f"<td>{e(value)}</td>" for value in row[:-1])
            parts.append(f"<tr>{cells}<td class='{row[-1].replace(' ', '-')}'>{e(row[-1])}</td></tr>")
        picture = base64.b64encode((records / name / f"{name}.png").read_bytes()).decode()
        scale = entry.record["scale"]
        parts.append(f"</table><img alt='{e(name)}' src='data:image/png;base64,{picture}'>")
        parts.append(f"<p>What differs from the paper: {e(entry.study.differs[scale])}</p>")
        parts.append(f"<details><summary>settings</summary>{e(scale)} scale; {e(entry.settings())}</details>")
    return "\n".join(parts) + "\n</html>\n"


def _cell(value: str) -> str:
    return value.replace("|", "\\|").replace("\n", " ")
