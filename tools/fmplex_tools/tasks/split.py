"""An honest split: what is held out was never trained on, not even as a copy.

1. A text that comes again (ignoring case and white space) counts once: its first row.
2. Where the data names its sides, or comes as two files, they are kept; a training row whose text is also held out
   goes out of training.
3. Where it names groups, a group is on one side only.
4. Otherwise 80/20 by a fixed seed, stratified: every label keeps its share on both sides.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from fmplex_backend.errors import InvalidInput
from fmplex_backend.repository.artifact import Kind
from fmplex_tools.tasks.data import Examples
from fmplex_tools.tasks.rows import row_key

TEST_FRACTION = 0.2
_BINS = 10


@dataclass(frozen=True)
class Split:
    """Row indices of both sides; no text is on both."""

    train: tuple[int, ...]
    test: tuple[int, ...]
    rule: str
    """How the held-out rows were chosen, for `Quality.split`."""
    duplicates: int
    """Rows left out because their text came before, or is held out."""


def split(
    examples: Examples,
    strata: Sequence[Hashable],
    *,
    seed: int = 0,
    test_fraction: float = TEST_FRACTION,
) -> Split:
    """Divide ``examples`` by the rules at the top of this file; ``strata`` has one entry a row.

    Raises `InvalidInput` where a side would be empty.
    """
    if examples.sides is not None:
        result = _by_sides(examples, examples.sides)
    else:
        first = _first_rows(examples)
        if examples.groups is not None:
            train, test = _by_groups(first, examples.groups, seed, test_fraction)
            rule = f"{test_fraction:.0%} of the groups, seed {seed}"
        else:
            train, test = stratified(first, strata, seed, test_fraction)
            rule = f"{test_fraction:.0%} of distinct texts, stratified, seed {seed}"
        result = Split(tuple(train), tuple(test), rule, len(examples) - len(first))
    if not result.train or not result.test:
        side = "training" if not result.train else "held-out"
        raise InvalidInput(f"no {side} rows are left of {len(examples)}; add rows, or check --split, --group, --test")
    return result


def strata_of(kind: Kind, labels: Sequence[object] | None, rows: int, separator: str) -> list[Hashable]:
    """What a stratified split keeps the shares of: the label, the set of labels, or tenths of a number's range."""
    if labels is None or kind == "token_classification":
        return [0] * rows
    if kind == "regression":
        numbers = np.array([float(label) for label in labels])  # type: ignore[arg-type]
        edges = np.quantile(numbers, np.linspace(0, 1, _BINS + 1)[1:-1])
        return [int(bin_) for bin_ in np.searchsorted(edges, numbers)]
    if kind == "multi_label":
        return [
            tuple(sorted(label)) if isinstance(label, (list, tuple)) else tuple(sorted(str(label).split(separator)))
            for label in labels
        ]
    return [str(label).strip() for label in labels]


def stratified(
    rows: Sequence[int], strata: Sequence[Hashable], seed: int, test_fraction: float
) -> tuple[list[int], list[int]]:
    """Both sides of ``rows``, ascending; a stratum of 2 rows or more is on both sides, a lone row is for training."""
    chance = random.Random(seed)
    by_stratum: dict[Hashable, list[int]] = defaultdict(list)
    for row in rows:
        by_stratum[strata[row]].append(row)
    train: list[int] = []
    test: list[int] = []
    for members in by_stratum.values():
        chance.shuffle(members)
        held = min(max(round(len(members) * test_fraction), 1), len(members) - 1)
        test += members[:held]
        train += members[held:]
    return sorted(train), sorted(test)


def cap(rows: Sequence[int], strata: Sequence[Hashable], most: int | None, seed: int) -> list[int]:
    """At most ``most`` of ``rows``, keeping every stratum's share; all of them where ``most`` is None."""
    if most is None or len(rows) <= most:
        return list(rows)
    chance = random.Random(seed)
    by_stratum: dict[Hashable, list[int]] = defaultdict(list)
    for row in rows:
        by_stratum[strata[row]].append(row)
    # Interleave the strata by each row's quantile in its own, then cut: shares hold to within one row.
    ranked: list[tuple[float, float, int]] = []
    for members in by_stratum.values():
        chance.shuffle(members)
        ranked += [((place + 0.5) / len(members), chance.random(), row) for place, row in enumerate(members)]
    return sorted(row for _, _, row in sorted(ranked)[:most])


def join_test(train: Examples, test: Examples) -> Examples:
    """One set of rows out of a training file and a ``--test`` file, with sides."""

    def both(a: tuple[object, ...] | None, b: tuple[object, ...] | None, what: str) -> tuple[object, ...] | None:
        if (a is None) != (b is None):
            raise InvalidInput(f"{train.source} and {test.source}: only one of them has {what}")
        return None if a is None or b is None else a + b

    joined = {name: both(getattr(train, name), getattr(test, name), name) for name in ("labels", "pairs", "words")}
    sides = ("train",) * len(train) + ("test",) * len(test)
    return Examples(
        rows=train.rows + test.rows,
        sides=sides,
        source=f"{train.source}, held out: {test.source}",
        label_name=train.label_name,
        **joined,  # type: ignore[arg-type]
    )


def _keys(examples: Examples) -> list[Hashable]:
    pairs: Sequence[str | None] = examples.pairs or [None] * len(examples)
    return [row_key(row, pair) for row, pair in zip(examples.rows, pairs, strict=True)]


def _first_rows(examples: Examples) -> list[int]:
    seen: set[Hashable] = set()
    first = []
    for row, key in enumerate(_keys(examples)):
        if key not in seen:
            seen.add(key)
            first.append(row)
    return first


def _by_sides(examples: Examples, sides: Sequence[str]) -> Split:
    keys = _keys(examples)
    taken: set[Hashable] = set()
    found: dict[str, list[int]] = {"test": [], "train": []}
    for side in ("test", "train"):  # held-out rows first: training gives way
        for row, key in enumerate(keys):
            if sides[row] == side and key not in taken:
                taken.add(key)
                found[side].append(row)
    kept = len(found["train"]) + len(found["test"])
    return Split(tuple(found["train"]), tuple(found["test"]), "as the data gives it", len(examples) - kept)


def _by_groups(
    rows: Sequence[int], groups: Sequence[str], seed: int, test_fraction: float
) -> tuple[list[int], list[int]]:
    names = sorted({groups[row] for row in rows})
    if len(names) < 2:
        raise InvalidInput(f"--group: all rows are of group {names[0]!r}; a split needs at least 2 groups")
    random.Random(seed).shuffle(names)
    held = set(names[: min(max(round(len(names) * test_fraction), 1), len(names) - 1)])
    return [row for row in rows if groups[row] not in held], [row for row in rows if groups[row] in held]
