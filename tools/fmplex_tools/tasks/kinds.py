"""What kind of task a label column makes, and its labels as numbers to train on.

Kinds are found by these rules, in order:

1. no label column: ``embedding``
2. lists of tags beside lists of words, equally long: ``token_classification``
3. lists, or strings with the separator (``|``) in them: ``multi_label``
4. numbers with more than 20 distinct values, or fractions with more than 5: ``regression``
5. anything else: ``classification``
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmplex_backend.errors import InvalidInput
from fmplex_backend.repository.artifact import Kind
from fmplex_tools.tasks.data import Examples, name_rows

SEPARATOR = "|"
MANY_NUMBERS = 20
MANY_FRACTIONS = 5
MIN_LABEL_ROWS = 2
"""Fewest rows a label must have: one to train on, one to test with."""


def detect_kind(examples: Examples, separator: str = SEPARATOR) -> Kind:
    """The kind of task that ``examples`` make, by the rules at the top of this file."""
    labels = examples.labels
    if labels is None:
        return "embedding"
    if any(isinstance(label, (list, tuple)) for label in labels):
        parallel = examples.words is not None and all(
            isinstance(label, (list, tuple)) and len(label) == len(words)
            for label, words in zip(labels, examples.words, strict=True)
        )
        return "token_classification" if parallel else "multi_label"
    if any(isinstance(label, str) and separator in label for label in labels):
        return "multi_label"
    numbers = [_number(label) for label in labels]
    finite = [number for number in numbers if number is not None]
    if len(finite) == len(numbers):
        distinct = set(finite)
        fractions = any(number != round(number) for number in finite)
        if len(distinct) > MANY_NUMBERS or (fractions and len(distinct) > MANY_FRACTIONS):
            return "regression"
    return "classification"


def _number(label: object) -> float | None:
    if isinstance(label, bool):
        return None
    try:
        number = float(label)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


@dataclass(frozen=True)
class Targets:
    """Labels as numbers, and what the numbers mean.

    ``values`` by kind: classification and labelled embedding int64 [n]; multi_label float32 [n, labels] of 0 and 1;
    regression float32 [n, 1]; token_classification an object array of int64 [words of the row].
    """

    kind: Kind
    names: tuple[str, ...]
    values: NDArray[Any] | None

    @property
    def width(self) -> int:
        """Outputs of a head for these targets."""
        return len(self.names)


def label_names(kind: Kind, examples: Examples, separator: str = SEPARATOR) -> tuple[str, ...]:
    """Names of the outputs, sorted; for regression the label column's name."""
    if examples.labels is None:
        if kind != "embedding":
            raise InvalidInput(f"kind {kind!r} needs a label column; give --label")
        return ()
    if kind == "regression":
        return (examples.label_name,)
    seen: set[str] = set()
    for parts in _parts(kind, examples.labels, separator):
        seen.update(parts)
    return tuple(sorted(seen))


def encode(kind: Kind, examples: Examples, names: Sequence[str], separator: str = SEPARATOR) -> Targets:
    """Targets of ``examples`` for outputs called ``names``. Raises `InvalidInput` naming rows that do not fit."""
    names = tuple(names)
    if kind == "embedding" and examples.labels is None:
        return Targets(kind, (), None)
    if examples.labels is None:
        raise InvalidInput(f"kind {kind!r} needs a label column; give --label")
    if kind == "regression":
        return Targets(kind, names, _numbers(examples.labels, examples.label_name))
    place = {name: index for index, name in enumerate(names)}
    rows = _parts(kind, examples.labels, separator)
    unknown = [row for row, parts in enumerate(rows) if any(part not in place for part in parts)]
    if unknown:
        label = next(part for part in rows[unknown[0]] if part not in place)
        raise InvalidInput(f"label {label!r} in {name_rows(unknown)} is not one of the training rows' labels")
    if kind == "multi_label":
        values = np.zeros((len(rows), len(names)), np.float32)
        for row, parts in enumerate(rows):
            values[row, [place[part] for part in parts]] = 1
        return Targets(kind, names, values)
    if kind == "token_classification":
        _check_tags(examples)
        tags = np.empty(len(rows), object)
        for row, parts in enumerate(rows):
            tags[row] = np.array([place[part] for part in parts], np.int64)
        return Targets(kind, names, tags)
    return Targets(kind, names, np.array([place[parts[0]] for parts in rows], np.int64))


def check_labels(kind: Kind, examples: Examples, separator: str = SEPARATOR) -> None:
    """Refuse data that cannot make a task of ``kind``: one label only, or a label with fewer than 2 rows."""
    if examples.labels is None or kind in ("regression", "token_classification"):
        return
    counts = label_counts(kind, examples, separator)
    if len(counts) < 2 and kind != "multi_label":
        raise InvalidInput(f"the labels of all rows are {next(iter(counts), '')!r}; a task needs at least 2 labels")
    rare = sorted(label for label, count in counts.items() if count < MIN_LABEL_ROWS)
    if rare:
        shown = ", ".join(repr(label) for label in rare[:5]) + (f" and {len(rare) - 5} more" if len(rare) > 5 else "")
        raise InvalidInput(
            f"too few rows to train and test on: {shown} {'has' if len(rare) == 1 else 'have'} only 1; "
            f"add rows, or leave rare labels out with --min-label-rows {MIN_LABEL_ROWS}"
        )


def drop_rare(kind: Kind, examples: Examples, fewest: int, separator: str = SEPARATOR) -> Examples:
    """``examples`` without labels of fewer than ``fewest`` rows: without their rows, or for multi-label the labels."""
    if examples.labels is None or kind in ("regression", "token_classification"):
        raise InvalidInput(f"--min-label-rows does not apply to kind {kind!r}")
    counts = label_counts(kind, examples, separator)
    keep = {label for label, count in counts.items() if count >= fewest}
    if kind == "multi_label":
        trimmed = tuple(
            tuple(part for part in parts if part in keep) for parts in _parts(kind, examples.labels, separator)
        )
        return Examples(**{**vars(examples), "labels": trimmed})
    return examples.take([row for row, label in enumerate(examples.labels) if _name(label) in keep])


def label_counts(kind: Kind, examples: Examples, separator: str = SEPARATOR) -> Counter[str]:
    """Rows per label."""
    return Counter(part for parts in _parts(kind, examples.labels or (), separator) for part in set(parts))


def _parts(kind: Kind, labels: Sequence[Any], separator: str) -> list[tuple[str, ...]]:
    """Each row's labels as strings; one for a single-label kind."""
    if kind in ("multi_label", "token_classification"):
        return [
            tuple(_name(part) for part in label)
            if isinstance(label, (list, tuple))
            else tuple(part.strip() for part in str(label).split(separator) if part.strip())
            for label in labels
        ]
    lists = [row for row, label in enumerate(labels) if isinstance(label, (list, tuple))]
    if lists:
        raise InvalidInput(f"kind {kind!r} takes one label a row, but {name_rows(lists)} hold lists")
    return [(_name(label),) for label in labels]


def _name(label: object) -> str:
    return str(label).strip()


def _numbers(labels: Sequence[object], column: str) -> NDArray[np.float32]:
    numbers = [_number(label) for label in labels]
    wrong = [row for row, number in enumerate(numbers) if number is None]
    if wrong:
        raise InvalidInput(
            f"kind 'regression' needs finite numbers; column {column!r} holds {labels[wrong[0]]!r} in "
            f"{name_rows(wrong)}"
        )
    return np.array(numbers, np.float32)[:, None]


def _check_tags(examples: Examples) -> None:
    if examples.words is None:
        raise InvalidInput("kind 'token_classification' needs a text column of word lists (jsonl or parquet)")
    wrong = [
        row
        for row, (words, tags) in enumerate(zip(examples.words, examples.labels or (), strict=True))
        if not isinstance(tags, (list, tuple)) or len(words) != len(tags)
    ]
    if wrong:
        raise InvalidInput(f"words and tags must be equally many; they are not in {name_rows(wrong)}")
