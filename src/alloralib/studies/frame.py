"""What a study is, and how it is run: cell by cell, resumable, to a record, a verdict per claim, and a picture.

A cell is one independent piece of work, named by a few plain values (a rate, a seed). Finished cells are kept as JSON in
`NAME.unfinished` until the record is written, so an interrupted study goes on where it stopped. Nothing of the clock or the
machine's paths enters a record: two runs give the same one. Verdicts and picture are functions of the cells in the record.
A study may judge the cells of other studies beside its own (Table 2 is made of Table 6's runs): they are run first.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import platform
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..comparison.statistics import Verdict, interval, verdict
from ..errors import ConfigError, RecordError
from .catalogue import load
from .cells import Cell, Key, Result, Settings, plain, read_json, rounded, select, work_cells, write_text
from .images import StudyData

__all__ = [
    "Cell",
    "Claim",
    "Finding",
    "Key",
    "Result",
    "Settings",
    "Study",
    "judged",
    "judged_range",
    "rounded",
    "run_study",
    "select",
]

FORMAT = 1
RECORD = "record.json"
SCALES = ("laptop", "paper")


@dataclass(frozen=True)
class Claim:
    """What the paper says, or what we ask beside it.

    Attributes:
        name: short, unique within the study.
        where: figure, table or section.
        text: in words.
        paper: its number, as printed.
        by_paper: False for a question or a check of our own; the pages count those apart.
    """

    name: str
    where: str
    text: str
    paper: str
    by_paper: bool = True


@dataclass(frozen=True)
class Finding:
    """What was found about a claim.

    Attributes:
        claim: its name.
        ours: our number, in words and units.
        low, high: what the verdict was taken from.
        spread: what low and high are (a 95 % interval over 5 seeds, the range over data sets, exact).
        rule: when it counts as confirmed.
        verdict: confirmed, not confirmed or inconclusive.
    """

    claim: str
    ours: str
    low: float
    high: float
    spread: str
    rule: str
    verdict: Verdict


@dataclass(frozen=True)
class Study:
    """A figure, table or proposition, as something that can be run.

    Attributes:
        name: what the command calls it.
        title: one line.
        claims: what it judges.
        needs: settings -> data sets below --data-dir: mnist, cifar10, or registered ones.
        libraries: those that compute, beside torch, numpy and scipy.
        settings: by scale.
        differs: by scale, how this differs from what the paper did or says.
        plan: settings -> the keys of the cells.
        work: (key, settings, data) -> a cell's result, plain values.
        judge: (cells, settings) -> one finding per claim.
        draw: (record, path) -> a PNG.
        follow: (cells of the plan, settings) -> the keys of more cells, where what is run hangs on what was found.
        sources: studies whose cells it judges too, in front of its own; it has their settings beside its own.
    """

    name: str
    title: str
    claims: tuple[Claim, ...]
    needs: Callable[[Settings], tuple[str, ...]]
    settings: dict[str, Settings]
    differs: dict[str, str]
    plan: Callable[[Settings], list[Key]]
    work: Callable[[Key, Settings, StudyData], Result]
    judge: Callable[[Sequence[Cell], Settings], list[Finding]]
    draw: Callable[[dict[str, Any], Path], None]
    libraries: tuple[str, ...] = ()
    follow: Callable[[Sequence[Cell], Settings], list[Key]] | None = None
    sources: tuple[str, ...] = ()


def run_study(
    study: Study,
    *,
    scale: str = "laptop",
    data_dir: Path | None = None,
    output_dir: Path,
    overwrite: bool = False,
    settings: Settings | None = None,
    jobs: int = 1,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Run a study, or what is left of it, and write `output_dir/NAME/record.json` and `NAME.png`.

    A finished study is not run again: verdicts and picture are made anew from its cells.

    Args:
        scale: laptop or paper.
        data_dir: where its data sets are.
        overwrite: forget what is there, finished or not; not of its sources.
        settings: over the scale's own, by name; for trying things out and for tests. They stand in the record.
        jobs: processes; the record does not depend on their number. More than one is for studies of the catalogue.
        tell: is told of progress.

    Returns:
        the record.

    Raises:
        AlloraError: data that is not there, or a record or unfinished run with other settings, data or versions.
    """
    data = StudyData(data_dir)
    chosen = study.settings[scale] | (settings or {})
    unknown = sorted(set(chosen) - set(study.settings[scale]))
    if unknown:
        raise ConfigError(f"{study.name} has no setting {unknown[0]!r}", remedy=", ".join(study.settings[scale]))
    borrowed: list[Cell] = []
    for source in map(load, study.sources):
        own = {name: chosen[name] for name in source.settings[scale]}
        record = run_study(source, scale=scale, data_dir=data_dir, output_dir=output_dir, settings=own, jobs=jobs, tell=tell)
        borrowed += [Cell(**cell) for cell in record["cells"]]
    identity = {
        "format": FORMAT, "study": study.name, "scale": scale, "settings": chosen,
        "versions": _versions(study), "machine": {"processor": platform.machine(), "threads": 1},
        "data": data.hashes(study.needs(chosen)) if data_dir is not None or scale == "laptop" else {},
    }  # fmt: skip
    if study.sources:
        identity["sources"] = {"studies": list(study.sources), "cells": _digest(borrowed)}
    final, working = output_dir / study.name, output_dir / f"{study.name}.unfinished"
    if overwrite:
        shutil.rmtree(final, ignore_errors=True)
        shutil.rmtree(working, ignore_errors=True)
    cells = _finished_cells(final / RECORD, identity)
    if cells is None:
        _stamp(working, identity)
        # a study may hold lambdas: another process finds it by its name
        work = partial(_work, study.work, chosen, data) if jobs == 1 else partial(_work_by_name, study.name, chosen, data)
        keys = study.plan(chosen)
        cells = work_cells(keys, work, working, jobs=jobs, tell=lambda line: tell(f"{study.name} {line}"))
        if study.follow is not None:
            keys = keys + study.follow(cells, chosen)
            cells = work_cells(keys, work, working, jobs=jobs, tell=lambda line: tell(f"{study.name} {line}"))
    record = identity | {
        "title": study.title, "differs": study.differs[scale], "claims": [asdict(c) for c in study.claims],
        "findings": [asdict(f) for f in findings_of(study, borrowed + cells, chosen)], "cells": [asdict(c) for c in cells],
    }  # fmt: skip
    final.mkdir(parents=True, exist_ok=True)
    study.draw(record | {"cells": [asdict(c) for c in borrowed + cells]}, final / f"{study.name}.png")
    write_text(final / RECORD, record_text(record))
    shutil.rmtree(working, ignore_errors=True)
    return record


def read_record(path: Path) -> dict[str, Any]:
    """A study's record.

    Raises:
        RecordError: it is none.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecordError(f"not a record ({error})", where=str(path), remedy="run the study again with --overwrite") from None
    if not isinstance(record, dict) or record.get("format") != FORMAT or "cells" not in record:
        raise RecordError("not a study's record of this version", where=str(path), remedy="run it again with --overwrite")
    return record


def record_text(record: dict[str, Any]) -> str:
    """JSON with a line per cell and per finding, so that a difference between two records can be read."""
    lines = []
    for name, value in record.items():
        if isinstance(value, list):
            inner = ",\n  ".join(json.dumps(v, allow_nan=False, ensure_ascii=False) for v in value)
            lines.append(f" {json.dumps(name)}: [\n  {inner}\n ]")
        else:
            lines.append(f" {json.dumps(name)}: {json.dumps(value, allow_nan=False, ensure_ascii=False)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def judged(
    claim: str, values: Sequence[float], *, unit: str = "", above: float | None = None, below: float | None = None, over: str
) -> Finding:
    """The finding of a mean over independent repetitions, from its 95 % interval.

    Args:
        values: one per repetition, at least two.
        over: what they repeat, in the plural: seeds.
        above, below: the claim's thresholds.
    """
    low, high = interval(values)
    ours = _number(math.fsum(values) / len(values)) + unit
    said = verdict(low, high, above=above, below=below)
    return Finding(claim, ours, low, high, f"95 % over {len(values)} {over}", _rule(above, below, unit), said)


def judged_range(
    claim: str, values: Sequence[float], *, unit: str = "", above: float | None = None, below: float | None = None, over: str
) -> Finding:
    """The finding of a claim about each of several cases: it is confirmed where all of them satisfy it.

    Args:
        values: one per case; one alone is exact.
        over: the cases, in the plural; for one value what it is.
    """
    low, high = min(values), max(values)
    ours = _number(low) + unit if low == high else f"{_number(low)} to {_number(high)}{unit}"
    spread = f"range over {len(values)} {over}" if len(values) > 1 else over
    return Finding(claim, ours, low, high, spread, _rule(above, below, unit), verdict(low, high, above=above, below=below))


def findings_of(study: Study, cells: list[Cell], settings: Settings) -> list[Finding]:
    """What a study's cells say about its claims, one finding each, to six digits."""
    findings = study.judge(cells, settings)
    names = [f.claim for f in findings]
    if names != [c.name for c in study.claims]:
        raise AssertionError(f"{study.name} judges {names}, and claims {[c.name for c in study.claims]}")
    return [Finding(**rounded(asdict(f))) for f in findings]


def cells_of(record: dict[str, Any], records: Path) -> list[Cell]:
    """The cells that a record is judged by: those of its sources, below the same directory, and its own.

    Raises:
        RecordError: a source is not there, or is not the one the record was made with.
    """
    borrowed: list[Cell] = []
    sources = record.get("sources", {"studies": []})
    for name in sources["studies"]:
        borrowed += [Cell(**cell) for cell in read_record(records / name / RECORD)["cells"]]
    if sources["studies"] and _digest(borrowed) != sources["cells"]:
        raise RecordError(
            f"{record['study']} was made with another {' and '.join(sources['studies'])}", where=str(records),
            remedy=f"allora reproduce {record['study']} --overwrite",
        )  # fmt: skip
    return borrowed + [Cell(**cell) for cell in record["cells"]]


def _work(work: Callable[[Key, Settings, StudyData], Result], settings: Settings, data: StudyData, key: Key) -> Result:
    return work(key, settings, data)


def _work_by_name(name: str, settings: Settings, data: StudyData, key: Key) -> Result:
    return load(name).work(key, settings, data)


def _digest(cells: Sequence[Cell]) -> str:
    return hashlib.sha256(json.dumps([asdict(c) for c in cells], sort_keys=True).encode()).hexdigest()


def _stamp(working: Path, identity: dict[str, Any]) -> None:
    working.mkdir(parents=True, exist_ok=True)
    stamp = working / "settings.json"
    if stamp.exists() and read_json(stamp) != plain(identity):
        raise ConfigError(
            "an unfinished run with other settings, data or versions is there", where=str(working), remedy="add --overwrite"
        )
    write_text(stamp, json.dumps(identity, indent=1) + "\n")


def _finished_cells(path: Path, identity: dict[str, Any]) -> list[Cell] | None:
    if not path.exists():
        return None
    record = read_record(path)
    for name, value in plain(identity).items():
        if record.get(name) != value:
            raise ConfigError(
                f"a record with other {name} is there: {_difference(record.get(name), value)}", where=str(path),
                remedy="add --overwrite to run the study again, or give another --output-dir",
            )  # fmt: skip
    return [Cell(**cell) for cell in record["cells"]]


def _difference(old: Any, new: Any) -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        changed = [f"{k} {old.get(k)} and not {new.get(k)}" for k in sorted({*old, *new}) if old.get(k) != new.get(k)]
        return ", ".join(changed)[:200]
    return f"{old} and not {new}"


def _versions(study: Study) -> dict[str, str]:
    names = ("torch", "numpy", "scipy", *study.libraries)
    try:
        found = {name: importlib.metadata.version(name) for name in names}
    except importlib.metadata.PackageNotFoundError as error:
        raise ConfigError(f"{study.name} needs {error.name}", remedy=f"pip install {error.name}") from None
    return {"python": platform.python_version()} | found


def _rule(above: float | None, below: float | None, unit: str) -> str:
    parts = [] if above is None else [f"above {_number(above)}{unit}"]
    parts += [] if below is None else [f"below {_number(below)}{unit}"]
    return " and ".join(parts)


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.2e}" if abs(value) >= 1e6 else f"{value:.0f}"
