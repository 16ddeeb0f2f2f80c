"""Reading training data: a csv, tsv, jsonl or parquet file with a column of rows and, usually, one of labels.

Rows are counted from 1 in messages, the header not counted. Nothing is guessed: an empty text, a missing label or a
column that does not exist is an error that names the file, the column and the rows.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmplex_backend.errors import InvalidInput, NotFound
from fmplex_backend.repository.modalities import Modality
from fmplex_tools.tasks.rows import Row, read_rows

FORMATS = (".csv", ".tsv", ".jsonl", ".parquet")
_CSV_FIELD_LIMIT = 1 << 26


@dataclass(frozen=True)
class Examples:
    """Rows of one task, column by column; every column that is not None has one entry a row.

    ``labels`` holds what the file says: strings, numbers or lists. ``words`` replaces the texts' word boundaries for
    token classification: the text is the words joined with one space.
    """

    rows: tuple[Row, ...]
    labels: tuple[Any, ...] | None = None
    pairs: tuple[str, ...] | None = None
    words: tuple[tuple[str, ...], ...] | None = None
    groups: tuple[str, ...] | None = None
    """Rows of one group stay on one side of the split."""
    sides: tuple[str, ...] | None = None
    """Per row ``train`` or ``test``, where the data says so itself."""
    source: str = ""
    """Where it came from, for people."""
    label_name: str = "value"
    """Name of the label column: a regression's output is called by it."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def gaps(self) -> bool:
        """Whether a series among the rows lacks a value."""
        return any(bool((row != row).any()) for row in self.rows)  # NaN is not itself

    def take(self, rows: Sequence[int]) -> Examples:
        """The rows with these indices, in this order."""

        def pick(column: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
            return None if column is None else tuple(column[row] for row in rows)

        return Examples(
            rows=tuple(self.rows[row] for row in rows),
            labels=pick(self.labels),
            pairs=pick(self.pairs),
            words=pick(self.words),
            groups=pick(self.groups),
            sides=pick(self.sides),
            source=self.source,
            label_name=self.label_name,
        )


@dataclass(frozen=True)
class Columns:
    """Which columns of a file hold what."""

    row: str
    """What goes in: a text, or, as ``modality`` says, an image's or a WAV file's path, or a series."""
    label: str | None = None
    pair: str | None = None
    group: str | None = None
    split: str | None = None
    modality: Modality = "text"
    label_option: str = "label"

    def named(self) -> dict[str, str]:
        """Option → column, of those that are there."""
        options = {self.modality: self.row, self.label_option: self.label, "pair": self.pair}
        options |= {"group": self.group, "split": self.split}
        return {option: name for option, name in options.items() if name is not None}


def read_examples(path: Path, columns: Columns) -> Examples:
    """Read one data file. Raises `NotFound` for a file or column that is not there, `InvalidInput` for bad rows."""
    table, rows = read_table(path)
    for option, name in columns.named().items():
        if name not in table:
            raise NotFound(f"{path}: no column {name!r} (--{option}); its columns are {', '.join(sorted(table))}")
    if rows == 0:
        raise InvalidInput(f"{path}: holds no rows")
    words, values = None, table[columns.row]
    made: tuple[Row, ...]
    if columns.modality != "text":
        _refuse_missing(path, columns.row, values, columns.modality)
        made = read_rows(path, columns.row, values, columns.modality)
    elif any(isinstance(value, (list, tuple)) for value in values):
        words = _word_column(path, columns.row, values)
        made = tuple(" ".join(row) for row in words)
    else:
        made = _text_column(path, columns.row, values)
    return Examples(
        rows=made,
        labels=None if columns.label is None else _label_column(path, columns.label, table[columns.label]),
        pairs=None if columns.pair is None else _text_column(path, columns.pair, table[columns.pair]),
        words=words,
        groups=None if columns.group is None else _text_column(path, columns.group, table[columns.group]),
        sides=None if columns.split is None else _side_column(path, columns.split, table[columns.split]),
        source=path.name,
        label_name=columns.label or "value",
    )


def read_table(path: Path) -> tuple[dict[str, list[Any]], int]:
    """Columns by name, and the number of rows. A csv's values are strings; an empty field is the empty string."""
    if not path.is_file():
        raise NotFound(f"data file {path}: no such file")
    readers = {".csv": _read_csv, ".tsv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InvalidInput(f"data file {path}: unknown ending {path.suffix!r}; use one of {', '.join(FORMATS)}")
    try:
        return reader(path)
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path}: not UTF-8 at byte {error.start}; convert it, e.g. with iconv") from error


def _read_csv(path: Path) -> tuple[dict[str, list[Any]], int]:
    csv.field_size_limit(_CSV_FIELD_LIMIT)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        header = next(reader, None)
        if not header:
            raise InvalidInput(f"{path}: empty; the first line must name the columns")
        if len(set(header)) != len(header):
            raise InvalidInput(f"{path}: its header names a column twice: {', '.join(header)}")
        columns: list[list[Any]] = [[] for _ in header]
        number = 0
        for row in reader:
            if not row:
                continue  # a blank line is no row
            number += 1
            if len(row) != len(header):
                raise InvalidInput(
                    f"{path}: row {number} has {len(row)} fields, the header {len(header)}; quote commas"
                )
            for column, value in zip(columns, row, strict=True):
                column.append(value)
    return dict(zip(header, columns, strict=True)), number


def _read_jsonl(path: Path) -> tuple[dict[str, list[Any]], int]:
    rows: list[dict[str, Any]] = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise InvalidInput(f"{path}: line {number} is not JSON ({error})") from None
            if not isinstance(row, dict):
                raise InvalidInput(f"{path}: line {number} is not a JSON object")
            rows.append(row)
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {name: [row.get(name) for row in rows] for name in names}, len(rows)


def _read_parquet(path: Path) -> tuple[dict[str, list[Any]], int]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowInvalid as error:
        raise InvalidInput(f"{path}: not a readable parquet file ({error})") from None
    return table.to_pydict(), int(table.num_rows)


def is_missing(value: object) -> bool:
    """Whether a cell is empty: None, NaN, blank text or an empty list."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return True
    if isinstance(value, str):
        return not value.strip()
    return isinstance(value, (list, tuple)) and len(value) == 0


def name_rows(rows: Sequence[int]) -> str:
    """``row 3`` or ``rows 3, 5, 9 and 12 more``, from 0-based indices."""
    shown = ", ".join(str(row + 1) for row in rows[:5])
    more = f" and {len(rows) - 5} more" if len(rows) > 5 else ""
    return f"row{'s' if len(rows) > 1 else ''} {shown}{more}"


def _refuse_missing(path: Path, column: str, values: Sequence[object], what: str) -> None:
    empty = [row for row, value in enumerate(values) if is_missing(value)]
    if empty:
        raise InvalidInput(f"{path}: column {column!r} has no {what} in {name_rows(empty)}; fill or remove them")


def _text_column(path: Path, column: str, values: Sequence[object]) -> tuple[str, ...]:
    _refuse_missing(path, column, values, "text")
    return tuple(str(value) for value in values)


def _word_column(path: Path, column: str, values: Sequence[Any]) -> tuple[tuple[str, ...], ...]:
    _refuse_missing(path, column, values, "words")
    wrong = [
        row
        for row, value in enumerate(values)
        if not isinstance(value, (list, tuple))
        or any(not isinstance(word, str) or not word or word.split() != [word] for word in value)
    ]
    if wrong:
        raise InvalidInput(f"{path}: column {column!r} holds lists of words, but not in {name_rows(wrong)}")
    return tuple(tuple(value) for value in values)


def _label_column(path: Path, column: str, values: Sequence[Any]) -> tuple[Any, ...]:
    # An empty list is a legal multi-label answer: none of the labels.
    _refuse_missing(path, column, [value if value != [] else "none" for value in values], "label")
    return tuple(tuple(value) if isinstance(value, list) else value for value in values)


def _side_column(path: Path, column: str, values: Sequence[object]) -> tuple[str, ...]:
    sides = tuple(str(value).strip().lower() for value in values)
    wrong = [row for row, side in enumerate(sides) if side not in ("train", "test")]
    if wrong:
        raise InvalidInput(
            f"{path}: column {column!r} (--split) must say 'train' or 'test'; "
            f"{name_rows(wrong)} say{'s' if len(wrong) == 1 else ''} {values[wrong[0]]!r}"
        )
    return sides
