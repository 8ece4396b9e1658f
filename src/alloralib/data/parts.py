"""The training, validation and test rows of a run: three tables that share no example."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError
from .choices import with_indices
from .duplicates import Repeats, example_keys, find_repeats
from .forms import Columns, Kind
from .labels import in_order, labels
from .registered import read_part
from .registry import REGISTRY, Part
from .splitting import HeldOut, cut_classes, cut_groups, sample
from .table import Table, read_table

REMOVED = ("train", "conflicts", "train/test", "train/validation", "validation/test", "unlabelled")
"""What `Parts.removed` counts: repeated within train; equal to another row of train but for its label; in two parts (removed
from the first); without a label."""

_MOST_CONFLICTS = 0.5  # of the different examples; more means that a column is missing or wrong
_SHOWN = 3


@dataclass(frozen=True)
class Parts:
    """The rows of a run.

    Attributes:
        train: rows to train on.
        validation: rows to choose the checkpoint on; None if there are none.
        test: rows for the final score.
        removed: the number of rows that were left out, by the names in `REMOVED`.
        notes: what to know about the rows: conflicting labels, classes that a part does not have.
    """

    train: Table
    validation: Table | None
    test: Table
    removed: dict[str, int]
    notes: tuple[str, ...] = ()


def load_parts(
    kind: Kind, columns: Columns, *, data: str, data_dir: str | Path | None = None,
    validation_data: str | None = None, validation_share: float | None = None,
    test_data: str | None = None, test_share: float | None = None, default_test_share: float = 0.1,
    train_rows: int | None = None, validation_rows: int | None = None, test_rows: int | None = None,
    data_seed: int = 0, evaluation_seed: int = 0, held_out: HeldOut = "stratified",
) -> Parts:  # fmt: skip
    """Read the rows of a run; the same arguments give the same rows.

    A registered set brings its own validation and test parts, unless a share or other data is given. Without a test part,
    `default_test_share` of the training rows is held out. There are validation rows only if they are asked for or come
    with the set. An example that is in two parts is removed from the one that is used earlier: a test row is never trained
    or validated on, and given test rows are never changed. Rows of the same example stay together when a share is held
    out. `*_rows` are drawn last.

    For classification a share has its share of every class, a class with one row stays in training, and at least one row of
    each class is drawn for `train_rows`. Of equal examples with different labels within train the most frequent label is
    kept, none if there is a tie; of equal questions with different answers the first.

    Args:
        data: as for `read_table`, or the name of a registered set.
        data_dir: the directory with the files of registered sets; None for the hub.
        validation_data, test_data: like `data`; of a registered set, the part in question.
        validation_share, test_share: of the training rows without duplicates, in (0, 1).
        train_rows, validation_rows, test_rows: the largest number of rows.
        data_seed: seed of which `train_rows` are drawn.
        evaluation_seed: seed of which rows are held out, and of which `validation_rows` and `test_rows` are drawn.
        held_out: "random" does as versions before 0.3 did: rows are held out and drawn without regard to their class, and of
            equal examples with different labels the first is kept.

    Raises:
        DataError: a part cannot be read, has a malformed row, no row is left in it, or more than half of the training examples
            have several labels.
    """
    removed: dict[str, int] = dict.fromkeys(REMOVED, 0)
    notes: list[str] = []

    def own(part: Part) -> Table | None:
        table = read_part(data, part, data_dir) if data in REGISTRY else None
        return None if table is None else _labelled(table, columns, removed)

    def given(name: str, part: Part) -> Table:
        if name not in REGISTRY:
            return with_indices(read_table(name), columns) if kind == "multiple-choice" else read_table(name)
        table = read_part(name, part, data_dir)
        if table is None:
            where = "on the hub" if data_dir is None else f"in {data_dir}"
            remedy = f"give a file, or put {name}/{part}.jsonl in --data-dir"
            raise DataError(f"{name} has no {part} rows {where}", remedy=remedy)
        return _labelled(table, columns, removed)

    train = given(data, "train")
    test = given(test_data, "test") if test_data else own("test") if test_share is None else None
    validation = own("validation") if validation_share is None and not validation_data else None
    if validation_data:
        validation = given(validation_data, "validation")

    def keys(table: Table) -> list[str]:
        return example_keys(kind, table, columns)

    if test is not None and validation is not None:
        validation = _without(validation, keys(validation), set(keys(test)), removed, "validation/test")
    if test is not None:
        train = _without(train, keys(train), set(keys(test)), removed, "train/test")
    if validation is not None:
        train = _without(train, keys(train), set(keys(validation)), removed, "train/validation")
    keep_first = held_out == "random" or columns.label is None
    repeats = find_repeats(kind, train, columns, keep_first=keep_first)
    removed |= {"train": repeats.repeated, "conflicts": repeats.conflicting}
    if repeats.conflicts:
        notes.append(_conflicts(train, repeats, refuse=not keep_first))
    train = train.take(repeats.kept)

    shares: list[float] = []
    if test is None:
        shares.append(default_test_share if test_share is None else test_share)
    if validation is None and validation_share is not None:
        shares.append(validation_share)
    column = columns.label if columns.label in train.columns else None
    by_class = column if held_out == "stratified" else None
    if shares:
        if by_class is not None:
            train, *cut = cut_classes(train, labels(train, by_class), shares, evaluation_seed)
        else:
            train, *cut = cut_groups(train, keys(train), shares, evaluation_seed)
        if test is None:
            test, *cut = cut
        validation = cut[0] if cut else validation
    assert test is not None

    def drawn(table: Table, rows: int | None, seed: int, *, each: bool = False) -> Table:
        few = rows is not None and rows < len(table)
        return sample(table, rows, seed, labels(table, by_class) if few and by_class is not None else None, each=each)

    train = drawn(train, train_rows, data_seed, each=True)
    validation = None if validation is None else drawn(validation, validation_rows, evaluation_seed)
    test = drawn(test, test_rows, evaluation_seed)
    if column is not None:
        notes += _missing_classes(column, train, {"validation": validation, "test": test})
    return Parts(train, validation, test, removed, tuple(notes))


def _conflicts(table: Table, repeats: Repeats, *, refuse: bool) -> str:
    """What to say of equal examples with different labels. Raises `DataError` if they are most examples, and `refuse`."""
    rows = [row for group in repeats.conflicts for row in group]
    shown = "; ".join(
        " and ".join(
            f"{table.where(row).removeprefix(table.source + ', ')} ({repeats.answers[row]!r})" for row in group[:_SHOWN]
        )
        for group in repeats.conflicts[:_SHOWN]
    )
    what = f"{len(repeats.conflicts):,} examples have several labels or answers, in {len(rows):,} rows: {shown}"
    if refuse and len(repeats.conflicts) > _MOST_CONFLICTS * repeats.examples:
        remedy = "check --label-column and --text-column, name a second text with --text-pair-column, or give one row per text"
        raise DataError(f"{what}; that is most of the {repeats.examples:,} different ones", where=table.source, remedy=remedy)
    return f"{what}; {repeats.rule}"


def _missing_classes(column: str, train: Table, held: dict[str, Table | None]) -> list[str]:
    """What to say of classes that are not in every part."""
    trained, notes = set(labels(train, column)), list[str]()
    for part, table in held.items():
        there = trained if table is None else set(labels(table, column))
        if lost := in_order(trained - there):
            notes.append(f"no {part} row has {_named(lost)} of the {len(trained)} classes trained on")
        if untrained := in_order(there - trained):
            notes.append(f"no training row has {_named(untrained)} of the classes of the {part} rows")
    return notes


def _named(names: list[str]) -> str:
    return ", ".join(map(repr, names[:_SHOWN])) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _labelled(table: Table, columns: Columns, removed: dict[str, int]) -> Table:
    """A registered set's rows without those that have no label."""
    values = table.columns.get(columns.label or columns.answer or "")
    if values is None or None not in values:
        return table
    rows = [row for row, value in enumerate(values) if value is not None]
    removed["unlabelled"] += len(table) - len(rows)
    if not rows:
        raise DataError("no row has a label", where=table.source, remedy="give other data for this part")
    return table.take(rows)


def _without(table: Table, keys: list[str], held: set[str], removed: dict[str, int], pair: str) -> Table:
    rows = [row for row, key in enumerate(keys) if key not in held]
    removed[pair] = len(table) - len(rows)
    if not rows:
        earlier, later = pair.split("/")
        what = f"every {earlier} row is also among the {later} rows"
        raise DataError(what, where=table.source, remedy=f"give other {later} rows")
    return table if len(rows) == len(table) else table.take(rows)
