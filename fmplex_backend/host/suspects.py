"""Which rows kill engines. Pure: no engine, no lock; called under the dispatcher's.

1. The rows of a batch whose engine died while it ran wait again, the first time: most deaths are not their fault.
2. Rows that have seen a second engine die are suspects: they are run apart from all others, as a **trial**.
3. A trial whose engine dies too is split in halves, rows of one vFM together; one that ends clears its rows.
4. A row that is alone in its trial when an engine dies is tried once more, since that may have died of something else.
   It is convicted by the second one.
5. What is left of a trial is tried before others: a conviction withdraws all rows of its vFM, and spares engines.
"""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from fmplex_backend.host.requests import RowTask
from fmplex_backend.scheduling.interface import Batch, Row, Share

SUSPECT = 2
"""Engines that have died under a row, whatever ran beside it."""
GUILTY = 2
"""Engines that have died under a suspect alone."""


@dataclass(frozen=True, slots=True)
class Trial(Batch):
    """Suspects that run together. The queue knows nothing of it, and nobody is charged for it."""


class Suspects:
    """See the module."""

    def __init__(self) -> None:
        self._trials: deque[Trial] = deque()
        self._numbers = itertools.count(-1, -1)  # the queue counts its batches up from 1

    def __bool__(self) -> bool:
        return bool(self._trials)

    def sort_out(self, batch: Batch) -> tuple[list[Row], list[Row]]:
        """An engine died while it ran ``batch``: the rows that may wait again, and those that are convicted.

        The others are suspects; `next` gives them.
        """
        for row in batch.rows:
            row.payload.deaths += 1
        if isinstance(batch, Trial):
            return [], self._try_again(batch)
        again = [row for row in batch.rows if row.payload.deaths < SUSPECT]
        suspects = [row for row in batch.rows if row.payload.deaths >= SUSPECT]
        if suspects:
            self._trials.append(self._trial_of(sorted(suspects, key=lambda row: row.vfm), batch))
        return again, []

    def _try_again(self, trial: Trial) -> list[Row]:
        rows = list(trial.rows)
        if len(rows) == 1:
            rows[0].payload.deaths_alone += 1
            if rows[0].payload.deaths_alone >= GUILTY:
                return rows
        half = (len(rows) + 1) // 2
        parts = [part for part in (rows[:half], rows[half:]) if part]
        self._trials.extendleft(self._trial_of(part, trial) for part in reversed(parts))
        return []

    def _trial_of(self, rows: list[Row], batch: Batch) -> Trial:
        return _trial(next(self._numbers), rows, batch.predicted)

    def next(self, wanted: Callable[[Row], bool]) -> Trial | None:
        """The trial to run now, with those of its rows that are still ``wanted``; None where none is left."""
        while self._trials:
            trial = self._trials.popleft()
            if rows := [row for row in trial.rows if wanted(row)]:
                return _trial(trial.number, rows, trial.predicted)
        return None

    def withdraw(self, chosen: Callable[[RowTask], bool]) -> list[Row]:
        """Take out, and return, the rows whose tasks are ``chosen``."""
        taken: list[Row] = []
        for _ in range(len(self._trials)):
            trial = self._trials.popleft()
            taken += [row for row in trial.rows if chosen(row.payload)]
            if rest := [row for row in trial.rows if not chosen(row.payload)]:
                self._trials.append(_trial(trial.number, rest, trial.predicted))
        return taken


def _trial(number: int, rows: list[Row], predicted: float) -> Trial:
    counts = Counter(row.vfm for row in rows)
    shares = {vfm: Share(count, count / len(rows)) for vfm, count in counts.items()}
    return Trial(number, tuple(rows), predicted, shares, len(rows))
