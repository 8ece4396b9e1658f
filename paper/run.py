"""Run a study cell by cell, and write its record, its verdicts and its picture.

Finished cells are kept as JSON in `NAME.unfinished` until the record is written, so an interrupted study continues where it
stopped. A record holds no time and no path: two runs give the same record. Verdicts and picture are computed from the cells in
the record, so a finished study is judged again without running anything.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from alloralib.errors import ConfigError, RecordError
from alloralib.files import sha256_of_json, write_text

from .catalogue import TITLES, load
from .cells import Cell, Key, Result, Settings, plain, read_json, rounded, work_cells
from .data import StudyData
from .study import Study

FORMAT = 1
RECORD = "record.json"


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

    If the study is finished, nothing is run: its cells are judged and drawn again, and the record is rewritten only if a
    finding changed. This needs neither the data nor the versions that the record was made with.

    Args:
        scale: laptop or paper.
        data_dir: where the data sets are.
        output_dir: the directory of all records.
        overwrite: delete what is there, finished or not, and start again. Does not apply to the study's sources.
        settings: replace some of the scale's settings; the record keeps them.
        jobs: number of processes. The record does not depend on it. More than one needs a study of the catalogue.
        tell: called with a line of progress.

    Returns:
        the record.

    Raises:
        AlloraError: missing data, or a record or unfinished run with other settings, data or sources.
    """
    data = StudyData(data_dir)
    chosen = study.settings[scale] | (settings or {})
    unknown = sorted(set(chosen) - set(study.settings[scale]))
    if unknown:
        raise ConfigError(
            f"{study.name} has no setting {unknown[0]!r}", remedy=f"its settings are {', '.join(study.settings[scale])}"
        )
    borrowed: list[Cell] = []
    for source in map(load, study.sources):
        own = {name: chosen[name] for name in source.settings[scale]}
        record = run_study(source, scale=scale, data_dir=data_dir, output_dir=output_dir, settings=own, jobs=jobs, tell=tell)
        borrowed += _cells(record)
    asked: dict[str, Any] = {"format": FORMAT, "study": study.name, "scale": scale, "settings": chosen}
    sources = {"sources": {"studies": list(study.sources), "cells": _digest(borrowed)}} if study.sources else {}
    hashes = data.hashes(study.needs(chosen)) if data_dir is not None else {}
    final, working = output_dir / study.name, output_dir / f"{study.name}.unfinished"
    if overwrite:
        shutil.rmtree(final, ignore_errors=True)
        shutil.rmtree(working, ignore_errors=True)
    before = read_record(final / RECORD) if (final / RECORD).exists() else None
    if before is not None:
        _check_same(before, asked | sources | ({"data": hashes} if data_dir is not None else {}), final / RECORD)
        identity = {name: before[name] for name in before if name not in ("title", "differs", "claims", "findings", "cells")}
        cells = _cells(before)
    else:
        if data_dir is None and scale == "laptop":
            hashes = data.hashes(study.needs(chosen))  # raises if the study needs a data set
        made_with = {"versions": _versions(study), "machine": {"processor": platform.machine(), "threads": 1}, "data": hashes}
        identity = asked | made_with | sources
        cells = _work(study, chosen, data, working, identity, jobs, tell)
    findings = findings_of(study, borrowed + cells, chosen)
    final.mkdir(parents=True, exist_ok=True)
    study.draw(borrowed + cells, chosen, final / f"{study.name}.png")
    if before is not None and before["findings"] == findings:
        return before
    record = identity | {
        "title": TITLES.get(study.name, study.name), "differs": study.differs[scale],
        "claims": [claim.words() for claim in study.claims], "findings": findings, "cells": [asdict(c) for c in cells],
    }  # fmt: skip
    write_text(final / RECORD, record_text(record))
    shutil.rmtree(working, ignore_errors=True)
    return record


def findings_of(study: Study, cells: Sequence[Cell], settings: Settings) -> list[dict[str, Any]]:
    """What the cells say about each claim of the study, as it stands in a record: numbers have six significant digits."""
    return [{"claim": claim.name} | rounded(asdict(claim.judge(cells, settings))) for claim in study.claims]


def read_record(path: Path) -> dict[str, Any]:
    """Read a study's record.

    Raises:
        RecordError: the file is not such a record.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecordError(f"not a record ({error})", where=str(path), remedy="run the study with --overwrite") from None
    if not isinstance(record, dict) or record.get("format") != FORMAT or "cells" not in record:
        raise RecordError(f"not a study's record of format {FORMAT}", where=str(path), remedy="run the study with --overwrite")
    return record


def record_text(record: dict[str, Any]) -> str:
    """The record as JSON with one line per cell, finding and claim, so that the difference of two records is readable."""
    lines = []
    for name, value in record.items():
        if isinstance(value, list):
            inner = ",\n  ".join(json.dumps(v, allow_nan=False, ensure_ascii=False) for v in value)
            lines.append(f" {json.dumps(name)}: [\n  {inner}\n ]")
        else:
            lines.append(f" {json.dumps(name)}: {json.dumps(value, allow_nan=False, ensure_ascii=False)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def cells_of(record: dict[str, Any], records: Path) -> list[Cell]:
    """All cells that a record is judged by: those of its sources, found below the directory `records`, then its own.

    Raises:
        RecordError: a source is missing, or is not the one that the record was made with.
    """
    sources = record.get("sources", {"studies": []})
    borrowed = [cell for name in sources["studies"] for cell in _cells(read_record(records / name / RECORD))]
    if sources["studies"] and _digest(borrowed) != sources["cells"]:
        raise RecordError(
            f"{record['study']} was made with another record of {' and '.join(sources['studies'])}", where=str(records),
            remedy=f"python -m paper {record['study']} --overwrite",
        )  # fmt: skip
    return borrowed + _cells(record)


def _work(
    study: Study, settings: Settings, data: StudyData, working: Path, identity: dict[str, Any], jobs: int,
    tell: Callable[[str], None],
) -> list[Cell]:  # fmt: skip
    """Work on the cells that the directory `working` does not have yet."""
    _stamp(working, identity)
    # A study may hold lambdas, which cannot be sent to another process: there it is loaded by its name.
    one = partial(_by_name, study.name, settings, data) if jobs > 1 else lambda key: study.work(key, settings, data)

    def work(keys: list[Key]) -> list[Cell]:
        return work_cells(keys, one, working, jobs=jobs, tell=lambda line: tell(f"{study.name} {line}"))

    keys = study.plan(settings)
    cells = work(keys)
    return cells if study.follow is None else work(keys + study.follow(cells, settings))


def _by_name(name: str, settings: Settings, data: StudyData, key: Key) -> Result:
    return load(name).work(key, settings, data)


def _cells(record: dict[str, Any]) -> list[Cell]:
    return [Cell(**cell) for cell in record["cells"]]


def _digest(cells: Sequence[Cell]) -> str:
    return sha256_of_json([asdict(c) for c in cells])


def _stamp(working: Path, identity: dict[str, Any]) -> None:
    """Mark the directory of unfinished work with what it belongs to."""
    working.mkdir(parents=True, exist_ok=True)
    stamp = working / "settings.json"
    if stamp.exists() and read_json(stamp) != plain(identity):
        raise ConfigError(
            "there is an unfinished run with other settings, data or versions", where=str(working), remedy="add --overwrite"
        )
    write_text(stamp, json.dumps(identity, indent=1) + "\n")


def _check_same(record: dict[str, Any], wanted: dict[str, Any], path: Path) -> None:
    for name, value in plain(wanted).items():
        if record.get(name) != value:
            raise ConfigError(
                f"there is a record with other {name}: {_difference(record.get(name), value)}", where=str(path),
                remedy="add --overwrite to run the study again, or give another --output-dir",
            )  # fmt: skip


def _difference(old: Any, new: Any) -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        changed = [f"{k} {old.get(k)} instead of {new.get(k)}" for k in sorted({*old, *new}) if old.get(k) != new.get(k)]
        return ", ".join(changed)[:200]
    return f"{old} instead of {new}"


def _versions(study: Study) -> dict[str, str]:
    try:
        found = {name: importlib.metadata.version(name) for name in ("torch", "numpy", "scipy", *study.libraries)}
    except importlib.metadata.PackageNotFoundError as error:
        raise ConfigError(f"{study.name} needs {error.name}", remedy=f"pip install {error.name}") from None
    return {"python": platform.python_version()} | found
