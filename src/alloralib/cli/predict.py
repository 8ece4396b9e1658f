"""`allora predict`: the classes of unlabelled rows and their probabilities, or a language model's answers to them."""

from __future__ import annotations

import argparse
import csv
import io
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ..data.forms import flag
from ..errors import ConfigError, DataError, did_you_mean
from ..files import staged
from ..reporting.predictions import FORMATS, PredictionWriter
from .arguments import add_run, check_minimum, open_chosen

if TYPE_CHECKING:
    from ..data.forms import Columns
    from ..data.table import Table
    from ..data.unlabeled import Unlabeled
    from ..training.opened import OpenRun

HELP = "predict the class of unlabelled rows, or answer them"
DESCRIPTION = """\
Predict the class of every row of a file or of standard input, with the probability of every class. A language model
answers every row.

  allora predict runs/tweets --data new.csv --output predicted.csv
  allora predict runs/tweets --data new.jsonl --keep id,date --format jsonl
  allora predict runs/photos --data photos/ --top 3
  grep ERROR app.log | allora predict runs/logs
  allora predict runs/chat --data questions.txt --max-new-tokens 200

A label column is not needed, and not read. Without --output, the predictions are written to standard output."""

_PARTS = ("text", "text_pair", "image", "prompt", "messages", "choices")
GENERATES = ("causal-lm", "chat")
"""The tasks whose models answer in their own words."""
_GENERATION = {"max_new_tokens": 128, "temperature": 0.0, "seed": 0, "system": None}
_CHUNK = 1024
"""Rows that are held in memory at once."""
_BATCHES = 8
"""Batches of a chunk of generated answers, which are slow: a smaller chunk is seen earlier."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    add_run(parser)
    parser.add_argument(
        "--data", metavar="DATA",
        help="a file, a text file with one text per line (.txt), a directory of images, a registered set, or - for standard "
        "input [standard input]",
    )  # fmt: skip
    parser.add_argument("--split", metavar="PART", help="train, validation or test, of a registered set [test]")
    parser.add_argument(
        "--input-format", metavar="FORMAT",
        help="of standard input: lines (one text per line), csv, tsv, jsonl or json [jsonl if it starts with a JSON object, "
        "else lines]",
    )  # fmt: skip
    parser.add_argument("--skip-empty", action="store_true", help="leave out rows without text, instead of refusing them")
    parser.add_argument("--output", metavar="FILE", help="a new file; it appears only when all rows are predicted")
    parser.add_argument("--format", metavar="FORMAT", help="of the output: csv or jsonl [by the name of --output, else csv]")
    parser.add_argument("--keep", metavar="COLUMNS", help="columns of the data to copy to the output, with commas, or all")
    parser.add_argument("--top", metavar="K", type=int, help="only the K most probable classes or choices [all]")
    parser.add_argument("--batch-size", metavar="N", type=int, help="rows per forward pass [16; 8 to generate answers]")
    group = parser.add_argument_group("answers of task causal-lm and chat")
    group.add_argument("--system", metavar="TEXT", help="the system message, for task chat")
    group.add_argument("--max-new-tokens", metavar="N", type=int, help="longest answer, in tokens [128]")
    group.add_argument("--temperature", metavar="T", type=float, help="0 takes the most probable token [0]")
    group.add_argument("--seed", metavar="N", type=int, help="of sampling, with a temperature above 0 [0]")
    group = parser.add_argument_group("columns of --data")
    for part in _PARTS:
        group.add_argument(flag(part), metavar="COLUMN", help="[the run's]")


def run(arguments: argparse.Namespace) -> int:
    """Predict, and write a line per row."""
    check_minimum(arguments, top=1, batch_size=1, max_new_tokens=1, temperature=0, seed=0)
    form = _output_format(arguments)
    with ExitStack() as stack:
        path = None if arguments.output is None else stack.enter_context(staged(Path(arguments.output)))
        opened = open_chosen(arguments)
        _check_flags(arguments, opened.task)
        source, columns = _open(arguments, opened, stack)
        names, rows = _check(arguments, source, columns)
        keep = _kept(arguments.keep or ("image" if source.is_directory else ""), names, source.source)
        file = _standard_output() if path is None else stack.enter_context(path.open("w", encoding="utf-8", newline=""))
        bar = stack.enter_context(_progress(rows, hidden=path is None and sys.stdout.isatty()))
        writer = PredictionWriter(file, form, keep, top=arguments.top, choices=opened.task == "multiple-choice")
        for table, predicted in _predict(arguments, opened, source, columns, bar):
            for row, (number, found) in enumerate(zip(table.rows or [], predicted, strict=True)):
                writer.write(number, {name: table.columns[name][row] for name in keep}, found)
            file.flush()  # a reader of a pipe sees each chunk when it is done
    if arguments.output is not None:
        print(f"{arguments.output}: {rows:,} rows of {source.source}")
    return 0


def _output_format(arguments: argparse.Namespace) -> str:
    """csv or jsonl. Raises `ConfigError` for an unknown one, or if the name of --output says otherwise."""
    form = arguments.format
    if form is not None and form not in FORMATS:
        raise ConfigError(f"unknown --format {form!r}", remedy=did_you_mean(form, FORMATS))
    if arguments.output is None:
        return form or "csv"
    if Path(arguments.output).is_dir():
        raise ConfigError("a directory", where=arguments.output, remedy="give the name of a new file")
    implied = {".csv": "csv", ".jsonl": "jsonl"}.get(Path(arguments.output).suffix.lower())
    if form is None and implied is None:
        raise ConfigError("the name does not say the format", where=arguments.output, remedy="give --format csv or jsonl")
    if None not in (form, implied) and form != implied:
        raise ConfigError(f"--format {form}, but the name says {implied}", where=arguments.output, remedy="leave --format out")
    return form or implied or "csv"


def _check_flags(arguments: argparse.Namespace, task: str) -> None:
    """Raise `ConfigError` for a flag that has no meaning for the task."""
    meant = {"top": task not in GENERATES, "system": task == "chat"}
    for name in ("top", *_GENERATION):
        if getattr(arguments, name) is not None and not meant.get(name, task in GENERATES):
            raise ConfigError(f"--{name.replace('_', '-')} has no meaning for task {task}", remedy="leave it out")


def _open(arguments: argparse.Namespace, opened: OpenRun, stack: ExitStack) -> tuple[Unlabeled, Columns]:
    """The rows, and the columns of what the model is given."""
    from ..data.unlabeled import open_unlabeled, standard_input

    data = opened.data
    given = {part: name for part in _PARTS if (name := getattr(arguments, f"{part}_column")) is not None}
    name = None if arguments.data == "-" else arguments.data
    named = data.input_columns(name, given).named()
    if name is not None:
        if arguments.input_format is not None:
            raise ConfigError("--input-format is for standard input", where=name, remedy="leave it out")
        data_dir = None if opened.config is None else opened.config.data_dir
        source = open_unlabeled(name, opened.task, named, split=arguments.split, data_dir=data_dir)
    else:
        if arguments.data is None and sys.stdin.isatty():
            raise ConfigError("no rows to predict", remedy="give --data FILE, or pipe rows in: ... | allora predict RUN")
        if arguments.split is not None:
            raise ConfigError("--split is for a registered set", remedy="leave it out, or give --data")
        source = stack.enter_context(standard_input(opened.task, named, arguments.input_format))
    first = next(source.chunks(1), None)
    if first is None:
        raise DataError("no rows", where=source.source, remedy="give at least one row to predict")
    return source, data.input_columns(name, given, first.columns)


def _check(arguments: argparse.Namespace, source: Unlabeled, columns: Columns) -> tuple[list[str], int]:
    """Look at all rows before the model is loaded: an error of the last one is found before the first is predicted.

    Returns:
        the columns that any row has, and the number of rows to predict.
    """
    from ..data.unlabeled import check_inputs
    from ..evaluation.prediction import unanswered

    names: dict[str, None] = {}
    rows = skipped = 0
    for table in source.chunks(_CHUNK):
        names |= dict.fromkeys(table.columns)
        full = _used(arguments, table, columns)
        if len(full):
            check_inputs(full, columns)
            if columns.messages is not None:
                unanswered("chat", full, columns)
        rows, skipped = rows + len(full), skipped + len(table) - len(full)
    if rows == 0:
        raise DataError("no row has a text", where=source.source, remedy="give other rows, or name their column")
    if skipped:
        print(f"allora: {skipped:,} rows without text are left out", file=sys.stderr)
    return list(names), rows


def _used(arguments: argparse.Namespace, table: Table, columns: Columns) -> Table:
    from ..data.unlabeled import without_empty

    return without_empty(table, columns) if arguments.skip_empty else table


def _predict(
    arguments: argparse.Namespace, opened: OpenRun, source: Unlabeled, columns: Columns, bar: Any
) -> Iterator[tuple[Table, list[Any]]]:
    """Chunks of rows with their predictions or answers."""
    from ..evaluation.prediction import unanswered

    generates = opened.task in GENERATES
    settings: dict[str, Any] = {"batch_size": arguments.batch_size or (8 if generates else 16), "progress": bar.update}
    if generates:
        given = {name: getattr(arguments, name) for name in _GENERATION}
        settings |= {name: _GENERATION[name] if value is None else value for name, value in given.items()}
    first_seed = settings.get("seed", 0)
    for table in source.chunks(_BATCHES * settings["batch_size"] if generates else max(_CHUNK, settings["batch_size"])):
        table = _used(arguments, table, columns)
        if len(table) == 0:
            continue
        try:
            if generates:
                assert table.rows is not None
                settings["seed"] = first_seed + table.rows[0]  # or equal prompts would be answered alike in all chunks
                predicted: list[Any] = opened.generate(unanswered(opened.task, table, columns), **settings)
            else:
                predicted = opened.predict_table(table, columns, **settings)
        except DataError as error:
            raise DataError(error.what, where=_place(error.where, table), remedy=error.remedy) from None
        yield table, predicted


def _place(where: str | None, table: Table) -> str | None:
    """The place of a row in the data, instead of that in its chunk."""
    found = re.fullmatch(r"(?:prompt|row) (\d+)(.*)", where or "")
    return where if found is None else table.where(int(found[1]) - 1) + found[2]


def _kept(keep: str, names: list[str], where: str) -> list[str]:
    """The columns that --keep names. Raises `ConfigError` for one that no row has."""
    if keep == "all":
        return names
    kept = [name.strip() for name in next(csv.reader([keep]), [])]
    for name in kept:
        if name not in names:
            raise ConfigError(f"there is no column {name!r} for --keep", where=where, remedy=did_you_mean(name, names))
    return kept


def _standard_output() -> TextIO:
    """Standard output in UTF-8: a pipe may have another encoding, and the rows may be in any language."""
    if isinstance(sys.stdout, io.TextIOWrapper) and not sys.stdout.isatty():
        sys.stdout.reconfigure(encoding="utf-8")
    return sys.stdout


def _progress(rows: int, *, hidden: bool) -> Any:
    """A bar on standard error, if that is a terminal. It is hidden where the predictions go to the same terminal."""
    from tqdm import tqdm

    return tqdm(desc="predicting", total=rows, unit="row", file=sys.stderr, leave=False, disable=True if hidden else None)
