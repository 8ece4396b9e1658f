"""`python -m paper`: run the paper's figures and tables, and judge their claims."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from alloralib.errors import AlloraError, ConfigError, Interrupted, RecordError, did_you_mean

from .catalogue import QUICK, TITLES, load

if TYPE_CHECKING:
    from .study import Study

DESCRIPTION = """\
Run a figure, table or proposition of arXiv:2410.09692, draw it like the paper's, and judge each claim: confirmed, not confirmed
or inconclusive. An interrupted study continues where it stopped when the same command is given again.

  python -m paper --list
  python -m paper fig1 --data-dir data
  python -m paper quick --data-dir data      the studies that take minutes
  python -m paper all --data-dir data        every study; hours
  python -m paper --report paper.html

Records and pictures are written to OUTPUT_DIR/NAME. A finished study is not run again without --overwrite: its results are
judged and drawn again, which needs no data."""

RECORDS = "paper/records"
FLAGS: dict[str, dict[str, Any]] = {
    "--scale": {"choices": ("laptop", "paper"), "default": "laptop", "help": "the size of the study [laptop]"},
    "--data-dir": {"metavar": "DIR", "help": "the directory of data sets: folders mnist, cifar10, rotten_tomatoes, ..."},
    "--output-dir": {"metavar": "DIR", "default": RECORDS, "help": f"the directory of all records [{RECORDS}]"},
    "--jobs": {"metavar": "N", "type": int, "help": "number of processes, of one thread each [all cores; paper scale: 1]"},
    "--overwrite": {"action": "store_true", "help": "delete what is there, finished or not, and run again"},
    "--against": {"metavar": "DIR", "help": "compare with the records in DIR, and fail if a verdict is the opposite"},
    "--list": {"action": "store_true", "help": "list the studies"},
    "--report": {"metavar": "FILE", "help": "write a page of all records: .html with its pictures included, or .md"},
}


class Parser(argparse.ArgumentParser):
    """argparse, with errors as `ConfigError`."""

    def error(self, message: str) -> NoReturn:
        """Raise the error instead of exiting."""
        raise ConfigError(message, remedy=f"{self.prog} --help lists the arguments")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0 on success, 2 for an error that the message explains, 128 plus the signal's number after an interrupt.
    """
    try:
        return _main(sys.argv[1:] if argv is None else argv)
    except Interrupted as error:
        print(f"paper: {error}", file=sys.stderr)
        return 128 + error.signal
    except AlloraError as error:
        print(f"paper: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:  # a run's own handler passes the signal's number
        print("paper: interrupted; the same command continues", file=sys.stderr)
        return 128 + (stop.args[0] if stop.args else signal.SIGINT)


def _main(argv: Sequence[str]) -> int:
    parser = Parser(
        prog="python -m paper", description=DESCRIPTION, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("study", metavar="NAME", nargs="?", help="a study of --list, quick or all")
    for flag, how in FLAGS.items():
        parser.add_argument(flag, **how)
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        flag = unknown[0].partition("=")[0]
        raise ConfigError(f"unknown argument {flag!r}", remedy=did_you_mean(flag, FLAGS))
    if sum([bool(arguments.study), arguments.list, bool(arguments.report)]) != 1:
        raise ConfigError("give exactly one of NAME, --list and --report FILE", remedy="python -m paper --help")
    output = Path(arguments.output_dir)
    if output.exists() and not output.is_dir():
        raise ConfigError("not a directory", where=str(output), remedy="give another --output-dir")
    if arguments.list:
        width = max(map(len, TITLES))
        for name, title in TITLES.items():
            state = "record" if (output / name / "record.json").is_file() else "not run"
            print(f"{name:<{width}}  {state:<7}  {title}")
        return 0
    return _report(Path(arguments.report), output) if arguments.report else _run(arguments, output)


def _run(arguments: argparse.Namespace, output: Path) -> int:
    names = {"all": tuple(TITLES), "quick": QUICK}.get(arguments.study, (arguments.study,))
    studies = [load(name) for name in names]
    if arguments.jobs is not None and arguments.jobs < 1:
        raise ConfigError(f"--jobs {arguments.jobs} is too small", remedy="give at least 1")

    from .run import RECORD, read_record, run_study

    against = None if arguments.against is None else Path(arguments.against)
    others = {} if against is None else {name: read_record(against / name / RECORD) for name in names}
    jobs = arguments.jobs or (os.cpu_count() or 1 if arguments.scale == "laptop" else 1)
    for study in studies:
        record = run_study(
            study, scale=arguments.scale, data_dir=None if arguments.data_dir is None else Path(arguments.data_dir),
            output_dir=output, overwrite=arguments.overwrite, jobs=jobs,
            tell=lambda line: print(line, file=sys.stderr, flush=True),
        )  # fmt: skip
        _print(study, record, output)
        if against is not None:
            _compare(record, others[study.name], str(against))
    return 0


def _print(study: Study, record: dict[str, Any], output: Path) -> None:
    print(f"{study.name}: {TITLES[study.name]}")
    for claim, finding in zip(study.claims, record["findings"], strict=True):
        print(f"  {finding['verdict']:<13}  {claim.text}")
        interval = f"{finding['spread']}: {finding['low']:.4g} to {finding['high']:.4g}"
        print(f"  {'':<13}  paper: {claim.paper}; here: {finding['ours']} ({interval}; confirmed if {finding['rule']})")
    print(f"  {output / study.name}")


def _compare(record: dict[str, Any], other: dict[str, Any], where: str) -> None:
    """Print how two records differ. Other processors and versions give other last digits, so a close verdict may change to
    inconclusive; only the opposite verdict is an error."""
    same = sum(a == b for a, b in zip(record["cells"], other["cells"], strict=False))
    cells = f"{same} of {len(other['cells'])} cells are equal to the last digit"
    here, there = ({f["claim"]: f["verdict"] for f in r["findings"]} for r in (record, other))
    changed = [claim for claim in here if here[claim] != there.get(claim)]
    said = ", ".join(f"{claim}: {here[claim]} here, {there.get(claim)} there" for claim in changed)
    if any({here[claim], there.get(claim)} == {"confirmed", "not confirmed"} for claim in changed):
        raise RecordError(
            f"{record['study']} has the opposite verdict ({said}); {cells}", where=where,
            remedy="compare versions, settings and data of the two records",
        )  # fmt: skip
    print(f"  {said or 'the same verdicts'}; {cells} ({where})")


def _report(path: Path, output: Path) -> int:
    if path.suffix not in (".html", ".md"):
        raise ConfigError(f"unknown kind of page {path.suffix!r}", where=str(path), remedy="use .html or .md")
    if not path.parent.is_dir():
        raise ConfigError("no such directory", where=str(path.parent), remedy="create it first")
    if not output.is_dir():
        raise ConfigError("no records there", where=str(output), remedy="run a study first, or give --output-dir")

    from .page import Entry, html_page, markdown_page
    from .run import RECORD, read_record

    files = {name: output / name / RECORD for name in TITLES}
    entries = [Entry(load(name), read_record(file) if file.is_file() else None) for name, file in files.items()]
    text = html_page(entries, output) if path.suffix == ".html" else markdown_page(entries, output, path.parent)
    path.write_text(text, encoding="utf-8")
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
