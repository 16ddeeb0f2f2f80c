"""Pieces of series to learn from: a past and what came next, or windows of one length. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmplex_backend.errors import InvalidInput

Series = NDArray[np.float32]
"""[channels, time], NaN where there is no value."""
LEAST_PAST = 8
"""Steps, and no fewer than the horizon."""
MOST_PER_ROW = 64


@dataclass(frozen=True)
class Past:
    """A series until some moment, and what came next."""

    past: Series
    ahead: Series
    """[channels, horizon]."""


def cut_pasts(rows: Sequence[Series], horizon: int) -> tuple[list[Past], list[Past]]:
    """To train with, in order of time in each row, and to test with: of each row its last ``horizon`` steps.

    What is tested is in no training piece. Raises `InvalidInput` naming a row that is too short.
    """
    least = max(LEAST_PAST, horizon)
    train: list[Past] = []
    test: list[Past] = []
    for number, row in enumerate(rows, start=1):
        steps = row.shape[1]
        if steps < least + 2 * horizon:
            raise InvalidInput(
                f"row {number} of the data has {steps} steps; to learn to forecast {horizon} and to test it, it takes "
                f"at least {least + 2 * horizon}"
            )
        test.append(Past(row[:, : steps - horizon], row[:, steps - horizon :]))
        ends = np.unique(np.linspace(least, steps - 2 * horizon, MOST_PER_ROW).astype(int))
        train += [Past(row[:, :end], row[:, end : end + horizon]) for end in ends.tolist()]
    return train, test


def cut_windows(rows: Sequence[Series], steps: int) -> list[Series]:
    """Each row as pieces of at most ``steps`` steps, one behind the other; the last of a row is its last steps."""
    return [piece for row in rows for piece in _pieces(row, steps)]


def _pieces(row: Series, steps: int) -> Iterator[Series]:
    length = row.shape[1]
    for start in range(0, max(1, length - steps + 1), steps):
        yield row[:, start : start + steps]
    if length > steps and length % steps:
        yield row[:, length - steps :]


def hide(known: NDArray[np.bool_], part: float, longest: int, chance: np.random.Generator) -> NDArray[np.bool_]:
    """About ``part`` of the steps of each channel of ``known``, in runs of 1 to ``longest``; one stays in each."""
    hidden: NDArray[Any] = np.zeros(known.shape, bool)
    for channel, own in enumerate(known):
        wanted = round(part * own.sum())
        while (hidden[channel] & own).sum() < wanted:
            start = int(chance.integers(len(own)))
            hidden[channel, start : start + int(chance.integers(1, longest + 1))] = True
        places = own.nonzero()[0]
        if hidden[channel][places].all():
            hidden[channel, places[0]] = False
    return hidden & known
