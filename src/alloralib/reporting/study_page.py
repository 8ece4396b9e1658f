"""The page of all studies, claim by claim in the order of the paper: HTML with its pictures inlined, or Markdown."""

from __future__ import annotations

import base64
import html
import os
from pathlib import Path
from typing import Any

Entry = tuple[str, str, dict[str, Any] | None]

TITLE = "The paper's claims, reproduced and judged"
ABOUT = (
    "Huang & Balestriero, ALLoRA: Adaptive Learning Rate Mitigates LoRA Fatal Flaws, arXiv:2410.09692. A claim is confirmed "
    "where all of the interval satisfies the rule beside it, not confirmed where none of it does, and otherwise inconclusive. "
    "Settings stand in the records; what was changed after a first look is said below the picture. Rows marked 'ours' are "
    "checks and questions of our own, beside what the paper claims."
)
HEAD = ("claim", "where", "paper", "here", "interval", "confirmed if", "verdict")

STYLE = """\
body{font:15px/1.5 system-ui,sans-serif;max-width:1080px;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;width:100%;margin:1em 0;font-size:14px}
td,th{border-bottom:1px solid #ddd;padding:.35em .5em;text-align:left;vertical-align:top}
img{max-width:100%}
.confirmed{color:#176d2c;font-weight:600}.not-confirmed{color:#a61b1b;font-weight:600}.inconclusive{color:#8a6100;font-weight:600}
.small,details{color:#666;font-size:13px}"""


def rows(record: dict[str, Any]) -> list[tuple[str, ...]]:
    """A row per claim, in the order of HEAD."""
    claims = {claim["name"]: claim for claim in record["claims"]}
    table = []
    for finding in record["findings"]:
        claim = claims[finding["claim"]]
        where = claim["where"] if claim["by_paper"] else f"ours: {claim['where']}"
        interval = finding["spread"]
        if finding["low"] != finding["high"]:
            interval = f"{finding['low']:.4g} to {finding['high']:.4g} ({finding['spread']})"
        table.append((claim["text"], where, claim["paper"], finding["ours"], interval, finding["rule"], finding["verdict"]))
    return table


def tally(entries: list[Entry]) -> str:
    """How many claims got which verdict: the paper's, and our own apart from them."""
    counts: dict[bool, list[str]] = {True: [], False: []}
    for _, _, record in entries:
        if record is not None:
            by_paper = {claim["name"]: claim["by_paper"] for claim in record["claims"]}
            for finding in record["findings"]:
                counts[by_paper[finding["claim"]]].append(finding["verdict"])
    said = [
        f"{len(verdicts)} {whose}: "
        + ", ".join(f"{verdicts.count(v)} {v}" for v in ("confirmed", "not confirmed", "inconclusive"))
        for whose, verdicts in (("claims of the paper", counts[True]), ("checks and questions of ours", counts[False]))
    ]
    return f"{'; '.join(said)}. {sum(record is None for _, _, record in entries)} studies not run."


def markdown_page(entries: list[Entry], records: Path, page: Path) -> str:
    """The page as Markdown; pictures are linked.

    Args:
        entries: name, title and record (None: not run) of each study.
        records: where the records and pictures are.
        page: the directory the page goes to.
    """
    lines = [f"# {TITLE}", "", ABOUT, "", tally(entries), ""]
    for name, title, record in entries:
        if record is None:
            continue
        picture = Path(os.path.relpath(records / name / f"{name}.png", page)).as_posix()
        lines += [f"## {name}: {title}", "", "| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|"]
        lines += ["| " + " | ".join(_cell(value) for value in row) + " |" for row in rows(record)]
        lines += ["", f"![{name}]({picture})", "", f"What differs: {record['differs']}", ""]
        lines += [f"`allora reproduce {name} --scale {record['scale']}`; " + _settings(record) + ".", ""]
    missing = [f"- {name}: {title}" for name, title, record in entries if record is None]
    if missing:
        lines += ["## Not run", "", *missing, ""]
    return "\n".join(lines)


def html_page(entries: list[Entry], records: Path) -> str:
    """The page as one HTML file that needs no other; arguments as in `markdown_page`."""
    e = html.escape
    parts = [
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{e(TITLE)}</title><style>{STYLE}</style>",
        f"<h1>{e(TITLE)}</h1><p>{e(ABOUT)}</p><p><b>{e(tally(entries))}</b></p>",
    ]
    for name, title, record in entries:
        parts.append(f"<h2 id='{e(name)}'>{e(name)}: {e(title)}</h2>")
        if record is None:
            parts.append("<p class='small'>not run</p>")
            continue
        parts.append("<table><tr>" + "".join(f"<th>{e(h)}</th>" for h in HEAD) + "</tr>")
        for row in rows(record):
            cells = "".join(f"<td>{e(value)}</td>" for value in row[:-1])
            parts.append(f"<tr>{cells}<td class='{row[-1].replace(' ', '-')}'>{e(row[-1])}</td></tr>")
        picture = base64.b64encode((records / name / f"{name}.png").read_bytes()).decode()
        parts.append(f"</table><img alt='{e(name)}' src='data:image/png;base64,{picture}'>")
        parts.append(f"<p>What differs: {e(record['differs'])}</p>")
        parts.append(f"<details><summary>settings</summary>{e(record['scale'])} scale; {e(_settings(record))}</details>")
    return "\n".join(parts) + "\n</html>\n"


def _settings(record: dict[str, Any]) -> str:
    pairs = [f"{name} {value}" for name, value in record["settings"].items()]
    return ", ".join(pairs) + "; " + ", ".join(f"{name} {version}" for name, version in record["versions"].items())


def _cell(value: str) -> str:
    return value.replace("|", "\\|").replace("\n", " ")
