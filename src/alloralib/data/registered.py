"""Reads a registered set: from `--data-dir`, as plain files or as its publisher released it, or from the hub."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import DataError, did_you_mean
from ..files import sha256, sha256_of_bytes
from . import commonsense
from .readers import FORMATS, read_file, text_lines
from .registry import PARTS, REGISTRY, Part, RegisteredSet
from .table import Table, read_hub

E2E_PROMPT = "Describe the restaurant in a sentence or two.\n{mr}\n"
TOXIC = 5.5  # sum of two ratings from 1 to 5, the limit that lm-evaluation-harness uses


def read_part(name: str, part: Part, data_dir: str | Path | None = None) -> Table | None:
    """One part of a registered set, with the default column names of its task (text, label, prompt, ...).

    Labels are the declared class names; a row without one has None (`parts.load_parts` leaves it out and counts it).

    Args:
        name: in `REGISTRY`.
        part: train, validation or test.
        data_dir: the directory with its files; None for the hub.

    Returns:
        None if the set, or that directory, has no such part.

    Raises:
        DataError: no file of the set is there (the message names those looked for), or a row is malformed.
    """
    if name not in REGISTRY:
        raise DataError(f"no registered set {name!r}", remedy=did_you_mean(name, REGISTRY))
    known = REGISTRY[name]
    if data_dir is None:
        hub = known.hub
        if part not in hub.splits:
            return None
        remedy = f"give --data-dir, a directory with one of {_expected_files(known)}"
        table = read_hub(hub.id, split=hub.splits[part], config=hub.config, revision=hub.revision, remedy=remedy)
        return _with_default_columns(known, table)
    files = {p: _find(known, p, Path(data_dir)) for p in PARTS}
    if not any(files.values()):
        remedy = f"put one of these there: {_expected_files(known)}"
        raise DataError(f"no file of {name}", where=str(data_dir), remedy=remedy)
    found = files[part]
    # a file that stands in for an earlier part (e2e_nlg's devset, if there is no training set) is only that part
    if found is None or any(files[earlier] == found for earlier in PARTS[: PARTS.index(part)]):
        return None
    table = _read_published(_PUBLISHED[name], found) if name in _PUBLISHED and not _is_plain(found[0]) else _read(found[0])
    if len(table) == 0:
        raise DataError("no rows", where=table.source, remedy="download the file again")
    return _with_default_columns(known, table)


def _read(path: Path) -> Table:
    columns, lines = read_file(path)
    return Table(str(path), sha256(path), columns, lines)


def _is_plain(path: Path) -> bool:
    return any(path.name.removesuffix(".gz").endswith(form) for form in FORMATS)


@dataclass(frozen=True)
class _Published:
    """Files as a publisher released them, one row per line.

    Attributes:
        files: part -> file names.
        line: of a row, with the groups `text` and `label`; without a label, `labels` gives the class of each file.
        header: whether the first line is not a row.
    """

    files: Mapping[Part, tuple[str, ...]]
    line: str = r"(?P<text>.*)"
    encoding: str = "utf-8"
    header: bool = False
    labels: tuple[str, ...] = ()


_SST2: Mapping[Part, tuple[str, ...]] = {
    "train": ("stsa.binary.train",),
    "validation": ("stsa.binary.dev",),
    "test": ("stsa.binary.test",),
}
_PUBLISHED: dict[str, _Published] = {
    "emotion": _Published(
        {"train": ("train.txt",), "validation": ("val.txt",), "test": ("test.txt",)},
        r"(?P<text>.*);(?P<label>[^;]*)", header=True,
    ),
    "trec": _Published({"train": ("TREC.train",), "test": ("TREC.test",)}, r"(?P<label>[^ :]*):[^ :]* (?P<text>.*)", "latin-1"),
    "sst2": _Published(_SST2, r"(?P<label>[^ ]*) (?P<text>.*)"),
    "rotten_tomatoes": _Published(
        {"train": ("rt-polarity.neg", "rt-polarity.pos")}, encoding="latin-1", labels=("neg", "pos")
    ),
    "sms_spam": _Published({"train": ("SMSSpamCollection",)}, r"(?P<label>[^\t]*)\t(?P<text>.*)"),
}  # fmt: skip


def _names(known: RegisteredSet, part: Part) -> Iterator[tuple[str, ...]]:
    """Names of files with a part, best first; several files if they hold it together."""
    for stem in (part, *known.files.get(part, ())):
        yield from ((stem + form,) for form in FORMATS)
    if known.name in _PUBLISHED and part in _PUBLISHED[known.name].files:
        yield _PUBLISHED[known.name].files[part]


def _find(known: RegisteredSet, part: Part, data_dir: Path) -> tuple[Path, ...] | None:
    for folder in known.folders:
        for names in _names(known, part):
            found = [_plain_or_gzipped(data_dir / folder / name) for name in names]
            paths = tuple(path for path in found if path is not None)
            if len(paths) == len(names):
                return paths
    return None


def _plain_or_gzipped(path: Path) -> Path | None:
    zipped = path.with_name(path.name + ".gz")
    readable = path.suffix != ".parquet" and zipped.is_file()
    return path if path.is_file() else zipped if readable else None


def _expected_files(known: RegisteredSet) -> str:
    stems = "|".join(dict.fromkeys(stem for part in PARTS for stem in (part, *known.files.get(part, ()))))
    forms = "|".join(form.removeprefix(".") for form in FORMATS)
    expected = [f"{folder}/{{{stems}}}.{{{forms}}}[.gz]" for folder in known.folders]
    if known.name in _PUBLISHED:
        published = _PUBLISHED[known.name].files.values()
        expected += [f"{known.folders[0]}/{name}[.gz]" for names in published for name in names]
    return ", ".join(expected)


def _read_published(published: _Published, paths: tuple[Path, ...]) -> Table:
    texts: list[str] = []
    labels: list[str] = []
    lines: list[int] = []
    for index, path in enumerate(paths):
        for number, line in text_lines(path, published.encoding):
            content = line.strip(" \r\n")
            if not content or (published.header and number == 1):
                continue
            row = re.fullmatch(published.line, content, re.DOTALL)
            if row is None:
                where = f"{path}, line {number}"
                raise DataError(f"not a row of this set: {content[:60]!r}", where=where, remedy="download the file again")
            texts.append(row["text"].strip())
            labels.append(published.labels[index] if published.labels else row["label"])
            lines.append(number)
    digests = [sha256(path) for path in paths]
    digest = digests[0] if len(paths) == 1 else sha256_of_bytes("".join(digests).encode())
    return Table(" + ".join(str(path) for path in paths), digest, {"text": texts, "label": labels}, lines)


def _with_default_columns(known: RegisteredSet, table: Table) -> Table:
    """The table with the default column names of its task and, for classification, the declared class names."""
    columns: dict[str, list[Any]] = {}
    for part in known.columns.named():
        name = next((name for name in (part, *known.aliases.get(part, ())) if name in table.columns), None)
        if name is not None:
            columns[part] = table.columns[name]
    if len(columns) < len(known.columns.named()):
        columns = _convert(known, table)
    if known.kind == "classification":
        columns["label"] = [_label(known, table, row, value) for row, value in enumerate(columns["label"])]
    return replace(table, columns=columns)


def _convert(known: RegisteredSet, table: Table) -> dict[str, list[Any]]:
    """The columns of a set whose rows are made from other columns."""
    converter = _converter(known, set(table.columns))
    rows: list[dict[str, Any]] = []
    for row in range(len(table)):
        try:
            rows.append(converter({name: values[row] for name, values in table.columns.items()}))
        except KeyError as error:
            remedy = f"name its columns {', '.join(known.columns.named())}, or as the hub's {known.hub.id} does"
            raise DataError(f"{known.name} needs a column {error.args[0]!r}", where=table.source, remedy=remedy) from None
        except (ValueError, TypeError) as error:
            remedy = "download it again"
            raise DataError(f"not a row of {known.name}: {error}", where=table.where(row), remedy=remedy) from None
    return {part: [row[part] for row in rows] for part in known.columns.named()}


def _converter(known: RegisteredSet, there: set[str]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    if known.kind == "multiple-choice" and {"instruction", "answer"} <= there:  # LLM-Adapters' files hold the instruction
        return lambda row: commonsense.example(row["instruction"], row["answer"])
    if known.kind == "multiple-choice":
        return lambda row: commonsense.example(*commonsense.instruction(known.name, row))
    if known.name == "toxigen" and {"text", "toxicity_ai", "toxicity_human"} <= there:
        return _toxigen
    if known.name == "e2e_nlg":
        return _e2e
    missing = next(part for part in known.columns.named() if not {part, *known.aliases.get(part, ())} & there)
    return lambda row: row[missing]  # raises the KeyError


def _toxigen(row: dict[str, Any]) -> dict[str, Any]:
    ratings = row["toxicity_ai"], row["toxicity_human"]
    label = None if None in ratings else "toxic" if sum(map(float, ratings)) > TOXIC else "benign"
    return {"text": row["text"], "label": label}


def _e2e(row: dict[str, Any]) -> dict[str, Any]:
    old = "mr" not in row and "meaning_representation" in row  # the hub's names
    mr, reference = ("meaning_representation", "human_reference") if old else ("mr", "ref")
    return {"prompt": E2E_PROMPT.format(mr=row[mr]), "completion": row[reference]}


def _label(known: RegisteredSet, table: Table, row: int, value: Any) -> str | None:
    """The class name. On the hub -1, and in some files a dash, stands for no label."""
    text = "" if value is None else str(value).strip()
    if text in ("", "-1", "-"):
        return None
    if known.labels is None or text in known.labels:
        return text
    if text.isdigit() and int(text) < len(known.labels):
        return known.labels[int(text)]
    raise DataError(f"{text!r} is no class of {known.name}", where=table.where(row), remedy=did_you_mean(text, known.labels))
