"""`allora reproduce`: the paper's figures and tables, run and judged."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError, RecordError
from ..studies.catalogue import QUICK, TITLES
from .arguments import check_minimum

HELP = "run a figure or table of the paper, and judge its claims"
DESCRIPTION = """\
Run a figure or table of arXiv:2410.09692, draw it like the paper's, and judge each claim: confirmed, not confirmed or
inconclusive. A study that is interrupted goes on where it stopped when the same command is given again.

  allora reproduce --list
  allora reproduce fig1 --data-dir data
  allora reproduce quick --data-dir data      some of them, minutes
  allora reproduce all --data-dir data        hours
  allora reproduce --report paper.html

Records and pictures go to OUTPUT_DIR/NAME. A finished study is not run again without --overwrite."""

DEFAULT_OUTPUT = "studies/records"


def flags() -> list[str]:
    """All flags, for the nearest name to a misspelt one."""
    return ["--scale", "--data-dir", "--output-dir", "--jobs", "--overwrite", "--against", "--list", "--report"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("study", metavar="NAME", nargs="?", help="a study of --list, quick or all")
    parser.add_argument("--scale", choices=("laptop", "paper"), default="laptop", help="how large [laptop]")
    parser.add_argument("--data-dir", metavar="DIR", help="where data sets are: folders mnist, cifar10, rotten_tomatoes")
    parser.add_argument("--output-dir", metavar="DIR", default=DEFAULT_OUTPUT, help=f"of all records [{DEFAULT_OUTPUT}]")
    parser.add_argument("--jobs", metavar="N", type=int, help="processes, of one thread each [cores; paper scale: 1]")
    parser.add_argument("--overwrite", action="store_true", help="run again what is there, finished or not")
    parser.add_argument("--against", metavar="DIR", help="fail where a record in DIR has the contrary verdict")
    parser.add_argument("--list", action="store_true", help="list the studies")
    parser.add_argument("--report", metavar="FILE", help="write a page of all records: .html with pictures inlined, or .md")


def run(arguments: argparse.Namespace) -> int:
    """List, report, or run."""
    asked = [bool(arguments.study), arguments.list, bool(arguments.report)]
    if sum(asked) != 1:
        raise ConfigError("say one thing: NAME, --list or --report FILE", remedy="allora reproduce --help")
    output = Path(arguments.output_dir)
    if output.exists() and not output.is_dir():
        raise ConfigError("not a directory", where=str(output), remedy="give another --output-dir")
    if arguments.list:
        width = max(map(len, TITLES))
        for name, title in TITLES.items():
            has_record = (output / name / "record.json").is_file()
            state = "record" if has_record else "not run"
            print(f"{name:<{width}}  {state:<7}  {title}")
        return 0
    if arguments.report:
        return _report(Path(arguments.report), output)
    return _run(arguments, output)


def _run(arguments: argparse.Namespace, output: Path) -> int:
    from ..studies.catalogue import load

    names = {"all": tuple(TITLES), "quick": QUICK}.get(arguments.study, (arguments.study,))
    studies = [load(name) for name in names]

    from ..studies.frame import run_study

    check_minimum(arguments, jobs=1)
    against = None if arguments.against is None else _records(Path(arguments.against), names)
    jobs = arguments.jobs or (os.cpu_count() or 1 if arguments.scale == "laptop" else 1)
    for study in studies:
        record = run_study(
            study, scale=arguments.scale, data_dir=None if arguments.data_dir is None else Path(arguments.data_dir),
            output_dir=output, overwrite=arguments.overwrite, jobs=jobs,
            tell=lambda line: print(line, file=sys.stderr, flush=True),
        )  # fmt: skip
        print(f"{study.name}: {study.title}")
        texts = {claim["name"]: claim for claim in record["claims"]}
        for finding in record["findings"]:
            claim = texts[finding["claim"]]
            print(f"  {finding['verdict']:<13}  {claim['text']}")
            print(f"  {'':<13}  paper: {claim['paper']}; here: {finding['ours']} ({finding['spread']}: "
                  f"{finding['low']:.4g} to {finding['high']:.4g}; confirmed if {finding['rule']})")  # fmt: skip
        print(f"  {output / study.name}")
        if against is not None:
            _compare(record, against[study.name], str(arguments.against))
    return 0


def _records(directory: Path, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    from ..studies.frame import RECORD, read_record

    return {name: read_record(directory / name / RECORD) for name in names}


def _compare(record: dict[str, Any], other: dict[str, Any], where: str) -> None:
    """Other processors and versions give other last digits, and a narrow verdict may become inconclusive: that is said. A
    verdict that turns into its contrary is an error."""
    same = sum(a == b for a, b in zip(record["cells"], other["cells"], strict=False))
    cells = f"{same} of {len(other['cells'])} cells are equal to the last digit"
    here, there = ({f["claim"]: f["verdict"] for f in r["findings"]} for r in (record, other))
    changed = [claim for claim in here if here[claim] != there.get(claim)]
    said = ", ".join(f"{claim}: {here[claim]} here, {there.get(claim)} there" for claim in changed)
    if any({here[claim], there.get(claim)} == {"confirmed", "not confirmed"} for claim in changed):
        raise RecordError(
            f"{record['study']} comes to the contrary ({said}); {cells}", where=where,
            remedy="compare the two records: versions, settings, data",
        )  # fmt: skip
    print(f"  {said or 'the same verdicts'}; {cells} ({where})")


def _report(path: Path, output: Path) -> int:
    from ..reporting.study_page import html_page, markdown_page
    from ..studies.frame import read_record

    if path.suffix not in (".html", ".md"):
        raise ConfigError(f"unknown kind of page {path.suffix!r}", where=str(path), remedy="use .html or .md")
    if not path.parent.is_dir():
        raise ConfigError("no such directory", where=str(path.parent), remedy="make it first")
    if not output.is_dir():
        raise ConfigError("no records there", where=str(output), remedy="run a study first, or give --output-dir")
    entries = []
    for name, title in TITLES.items():
        file = output / name / "record.json"
        entries.append((name, title, read_record(file) if file.is_file() else None))
    text = html_page(entries, output) if path.suffix == ".html" else markdown_page(entries, output, path.parent)
    path.write_text(text, encoding="utf-8")
    print(path)
    return 0
