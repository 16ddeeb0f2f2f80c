"""From rows to a task: its kind, the names of its outputs, and both sides of an honest split. No torch in here."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from fmplex_backend.errors import InvalidInput
from fmplex_backend.repository.artifact import Kind
from fmplex_tools.tasks.data import Examples
from fmplex_tools.tasks.kinds import check_labels, detect_kind, drop_rare, encode, label_counts, label_names
from fmplex_tools.tasks.options import TaskOptions
from fmplex_tools.tasks.split import Split, cap, split, strata_of


@dataclass(frozen=True)
class Prepared:
    """Data made ready: kind, names of the outputs, and both sides of the split."""

    kind: Kind
    names: tuple[str, ...]
    train: Examples
    test: Examples
    split: Split


def prepare_data(examples: Examples, options: TaskOptions) -> Prepared:
    """Kind, outputs and honest split of ``examples``. Raises `InvalidInput` for data that makes no task."""
    separator = options.separator
    kind = options.kind or detect_kind(examples, separator)
    options.check_for(kind, examples.labels is not None)
    options.pooling_for(kind)
    if options.min_label_rows is not None:
        examples = drop_rare(kind, examples, options.min_label_rows, separator)
    names = label_names(kind, examples, separator)
    encode(kind, examples, names, separator)  # refuses labels that are no numbers, no lists, or too few
    check_labels(kind, examples, separator)
    if kind == "embedding" and examples.labels is None:
        everything = Split(tuple(range(len(examples))), (), "nothing was trained", 0)
        return Prepared(kind, names, examples, examples.take([]), everything)
    strata: list[Hashable] = strata_of(kind, examples.labels, len(examples), separator)
    sides = split(examples, strata, seed=options.seed, test_fraction=options.test_fraction)
    train = examples.take(cap(sides.train, strata, options.max_rows, options.seed))
    test = examples.take(cap(sides.test, strata, options.max_test_rows, options.seed))
    if kind not in ("regression", "token_classification"):
        counts = label_counts(kind, train, separator)
        if untrained := [label for label in names if label not in counts]:
            raise InvalidInput(
                f"label {untrained[0]!r} has no training row ({len(untrained)} such labels); "
                "raise --max-rows, or leave rare labels out with --min-label-rows"
            )
    return Prepared(kind, names, train, test, sides)
