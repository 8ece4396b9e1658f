"""Reads a registered set: from `--data-dir`, in a plain layout or in the files its publisher gave out, or from the hub."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError, did_you_mean
from . import commonsense
from .readers import FORMATS, read_file, sha256, text_lines
from .registry import PARTS, REGISTRY, Part, RegisteredSet
from .table import Table, read_hub

E2E_PROMPT = "Describe the restaurant in a sentence or two.\n{mr}\n"
TOXIC = 5.5  # sum of two ratings from 1 to 5, as lm-evaluation-harness draws the line


def read_part(name: str, part: Part, data_dir: str | Path | None = None) -> Table | None:
    """One part of a registered set, its columns named as the parts of a row are (text, label, prompt, ...).

    Labels are the declared names; a row without one has None (`parts.load_parts` leaves it out and counts it).

    Args:
        name: in `REGISTRY`.
        part: train, validation or test.
        data_dir: where its files are; None for the hub.

    Returns:
        None where the set, or that directory, has no such part.

    Raises:
        DataError: nothing of the set is there (the files that were looked for are named), or a row is malformed.
    """
    if name not in REGISTRY:
        raise DataError(f"no registered set {name!r}", remedy=did_you_mean(name, REGISTRY))
    known = REGISTRY[name]
    if data_dir is None:
        hub = known.hub
        if part not in hub.splits:
            return None
        remedy = f"give --data-dir, a directory with one of {_looked_for(known)}"
        return _shaped(known, read_hub(hub.id, split=hub.splits[part], config=hub.config, revision=hub.revision, remedy=remedy))
    files = {p: _find(known, p, Path(data_dir)) for p in PARTS}
    if not any(files.values()):
        raise DataError(f"no file of {name}", where=str(data_dir), remedy=f"put one of these there: {_looked_for(known)}")
    found = files[part]
    # a file that stands in for an earlier part (e2e_nlg's devset, where the training set is not there) is that part only
    if found is None or any(files[earlier] == found for earlier in PARTS[: PARTS.index(part)]):
        return None
    table = _read_upstream(_UPSTREAM[name], part, found) if name in _UPSTREAM and not _plain(found[0]) else _read(found[0])
    if len(table) == 0:
        raise DataError("no rows", where=table.source, remedy="fetch the file again")
    return _shaped(known, table)


def _read(path: Path) -> Table:
    columns, lines = read_file(path)
    return Table(str(path), sha256(path), columns, lines)


def _plain(path: Path) -> bool:
    return any(path.name.removesuffix(".gz").endswith(form) for form in FORMATS)


# Files as their publishers gave them out: a line per row


@dataclass(frozen=True)
class _Upstream:
    """part -> files; a line of them -> text and label. `labels` has the class of each file where that is the label."""

    files: Mapping[Part, tuple[str, ...]]
    parse: Callable[[str], tuple[str, str]] = lambda line: (line, "")
    encoding: str = "utf-8"
    header: bool = False
    labels: tuple[str, ...] = ()


def _emotion(line: str) -> tuple[str, str]:
    text, label = line.rsplit(";", 1)
    return text, label


def _trec(line: str) -> tuple[str, str]:
    kind, text = line.split(" ", 1)
    coarse, _ = kind.split(":")
    return text, coarse


def _sst2(line: str) -> tuple[str, str]:
    label, text = line.split(" ", 1)
    return text, label


def _sms(line: str) -> tuple[str, str]:
    label, text = line.split("\t", 1)
    return text, label


_UPSTREAM: dict[str, _Upstream] = {
    "emotion": _Upstream({"train": ("train.txt",), "validation": ("val.txt",), "test": ("test.txt",)}, _emotion, header=True),
    "trec": _Upstream({"train": ("TREC.train",), "test": ("TREC.test",)}, _trec, "latin-1"),
    "sst2": _Upstream(
        {"train": ("stsa.binary.train",), "validation": ("stsa.binary.dev",), "test": ("stsa.binary.test",)}, _sst2
    ),
    "rotten_tomatoes": _Upstream({"train": ("rt-polarity.neg", "rt-polarity.pos")}, encoding="latin-1", labels=("neg", "pos")),
    "sms_spam": _Upstream({"train": ("SMSSpamCollection",)}, _sms),
}


def _names(known: RegisteredSet, part: Part) -> Iterator[tuple[str, ...]]:
    """The names of files that hold a part, best first; more than one file where they do so together."""
    for stem in (part, *known.files.get(part, ())):
        for form in FORMATS:
            yield (stem + form,)
            if form != ".parquet":
                yield (stem + form + ".gz",)
    if known.name in _UPSTREAM and part in _UPSTREAM[known.name].files:
        yield _UPSTREAM[known.name].files[part]


def _find(known: RegisteredSet, part: Part, data_dir: Path) -> tuple[Path, ...] | None:
    for folder in known.folders:
        for names in _names(known, part):
            found = [_either(data_dir / folder / name) for name in names]
            paths = tuple(path for path in found if path is not None)
            if len(paths) == len(names):
                return paths
    return None


def _either(path: Path) -> Path | None:
    zipped = path.with_name(path.name + ".gz")
    return path if path.is_file() else zipped if zipped.is_file() else None


def _looked_for(known: RegisteredSet) -> str:
    stems = "|".join(dict.fromkeys(stem for part in PARTS for stem in (part, *known.files.get(part, ()))))
    forms = "|".join(form.removeprefix(".") for form in FORMATS)
    looked = [f"{folder}/{{{stems}}}.{{{forms}}}[.gz]" for folder in known.folders]
    upstream = _UPSTREAM.get(known.name)
    if upstream is not None:
        looked += [f"{known.folders[0]}/{name}[.gz]" for names in upstream.files.values() for name in names]
    return ", ".join(looked)


def _read_upstream(upstream: _Upstream, part: Part, paths: tuple[Path, ...]) -> Table:
    texts: list[str] = []
    labels: list[str] = []
    lines: list[int] = []
    for position, path in enumerate(paths):
        for number, line in text_lines(path, upstream.encoding):
            content = line.strip(" \r\n")
            if not content or (upstream.header and number == 1):
                continue
            try:
                text, label = upstream.parse(content)
            except ValueError:
                raise DataError(
                    f"not a row of this set: {content[:60]!r}", where=f"{path}, line {number}", remedy="fetch the file again"
                ) from None
            texts.append(text.strip())
            labels.append(upstream.labels[position] if upstream.labels else label)
            lines.append(number)
    source = " + ".join(str(path) for path in paths)
    if len(paths) == 1:
        return Table(source, sha256(paths[0]), {"text": texts, "label": labels}, lines)
    digest = hashlib.sha256("".join(map(sha256, paths)).encode()).hexdigest()
    return Table(source, digest, {"text": texts, "label": labels})


# From the columns of the hub or of a file to the parts of a row


def _shaped(known: RegisteredSet, table: Table) -> Table:
    columns = {}
    for part in known.columns.named():
        for name in (part, *known.aliases.get(part, ())):
            if name in table.columns:
                columns[part] = table.columns[name]
                break
    if len(columns) < len(known.columns.named()):
        columns = _written(known, table)
    if known.kind == "classification":
        columns["label"] = [_label(known, table, row, value) for row, value in enumerate(columns["label"])]
    return table.with_columns(columns)


def _written(known: RegisteredSet, table: Table) -> dict[str, list[Any]]:
    """The parts where they are written from other columns."""
    there = table.columns
    write: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    if known.kind == "multiple-choice" and {"instruction", "answer"} <= set(there):
        write = _item
    elif known.kind == "multiple-choice":
        write = lambda row: commonsense.example(*commonsense.instruction(known.name, row))  # noqa: E731
    elif known.name == "toxigen" and {"text", "toxicity_ai", "toxicity_human"} <= set(there):
        write = _toxigen
    elif known.name == "e2e_nlg":
        write = _e2e
    rows: list[dict[str, Any]] = []
    for row in range(len(table)):
        try:
            if write is None:
                missing = next(p for p in known.columns.named() if not {p, *known.aliases.get(p, ())} & set(there))
                raise KeyError(missing)
            rows.append(write({name: values[row] for name, values in there.items()}))
        except KeyError as error:
            raise DataError(
                f"{known.name} needs a column {error.args[0]!r}",
                where=table.source,
                remedy=f"name its columns {', '.join(known.columns.named())}, or as the hub's {known.hub.id} does",
            ) from None
        except (ValueError, TypeError) as error:
            raise DataError(f"not a row of {known.name}: {error}", where=table.where(row), remedy="fetch it again") from None
    return {part: [row[part] for row in rows] for part in known.columns.named()}


def _item(row: dict[str, Any]) -> dict[str, Any]:
    """An item of LLM-Adapters' files, which holds the instruction already."""
    return commonsense.example(row["instruction"], row["answer"])


def _toxigen(row: dict[str, Any]) -> dict[str, Any]:
    ratings = row["toxicity_ai"], row["toxicity_human"]
    label = None if None in ratings else "toxic" if sum(map(float, ratings)) > TOXIC else "benign"
    return {"text": row["text"], "label": label}


def _e2e(row: dict[str, Any]) -> dict[str, Any]:
    old = "mr" not in row and "meaning_representation" in row  # the hub's names
    mr, reference = ("meaning_representation", "human_reference") if old else ("mr", "ref")
    return {"prompt": E2E_PROMPT.format(mr=row[mr]), "completion": row[reference]}


def _label(known: RegisteredSet, table: Table, row: int, value: Any) -> str | None:
    """The class by its name; the hub has -1 for a row without one, and some files a dash."""
    text = "" if value is None else str(value).strip()
    if text in ("", "-1", "-"):
        return None
    if known.labels is None or text in known.labels:
        return text
    if text.isdigit() and int(text) < len(known.labels):
        return known.labels[int(text)]
    raise DataError(f"{text!r} is no class of {known.name}", where=table.where(row), remedy=did_you_mean(text, known.labels))
