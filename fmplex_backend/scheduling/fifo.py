"""First come, first served: the oldest rows of whichever vFM, up to the batch limit. Weights mean nothing to it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from fmplex_backend.scheduling.base import PolicyQueue, Taken, VfmState, in_line
from fmplex_backend.scheduling.cost import CostModel
from fmplex_backend.scheduling.interface import Row, VfmPolicy


class FifoQueue(PolicyQueue[VfmState]):
    """One line over all vFMs. Rows of a vFM that has as many running as it may wait; others go ahead of them."""

    def __init__(self, max_batch_rows: int, cost: CostModel) -> None:
        """See `PolicyQueue`."""
        super().__init__(max_batch_rows, cost)
        self._line: deque[Row] = deque()

    def _new_state(self, name: str, policy: VfmPolicy, now: float) -> VfmState:
        return VfmState(name, policy, now)

    def _arrived(self, state: VfmState, row: Row, now: float) -> None:
        self._line.append(row)

    def _returned(self, state: VfmState, rows: list[Row]) -> None:
        self._line = in_line([*rows, *self._line])

    def _choose(self, now: float, taken: dict[VfmState, Taken], expired: list[Row]) -> list[Row]:
        rows: list[Row] = []
        aside: list[Row] = []
        while self._line and len(rows) < self.max_batch_rows:
            row = self._line.popleft()
            if row.state != "waiting":
                continue
            state = self._vfms[row.vfm]
            if not state.room:
                aside.append(row)
                continue
            self._take(state, row, taken)
            rows.append(row)
        self._line.extendleft(reversed(aside))
        return rows

    def _rows(self) -> Iterable[Row]:
        return list(self._line)
