"""Deficit round robin (Shreedhar and Varghese, 1996): vFMs take turns, each runs batches of its own rows alone.

A packet is a batch: the oldest rows of one vFM, as many as may run. On its turn a vFM's deficit grows by its quantum,
seconds of device time in proportion to its weight (at average weight what the largest packet so far should cost); it
sends packets while the deficit covers what they should cost. The deficit is settled to the measured charge. For
comparison: weighted shares as `fair` has them, but no row of one vFM ever shares a launch with another's.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from itertools import islice

from fmplex_backend.scheduling.base import PolicyQueue, Taken, VfmState, in_line
from fmplex_backend.scheduling.cost import CostModel
from fmplex_backend.scheduling.interface import Row, VfmPolicy


class DrrState(VfmState):
    """A vFM's line and deficit."""

    __slots__ = ("deficit", "due_quantum", "line", "listed")

    def __init__(self, name: str, policy: VfmPolicy, now: float) -> None:
        super().__init__(name, policy, now)
        self.line: deque[Row] = deque()
        """In order of arrival. Rows that wait no more leave when they come to the front."""
        self.deficit = 0.0
        """Seconds that it may still spend; below zero what it has had too much."""
        self.listed = False
        """Whether it has a place in the ring."""
        self.due_quantum = True
        """Whether its turn begins anew when it comes to the front."""


class DeficitRoundRobinQueue(PolicyQueue[DrrState]):
    """See the module. A decision visits O(1) vFMs, but for weights far below the average and after large debts."""

    def __init__(self, max_batch_rows: int, cost: CostModel) -> None:
        """See `PolicyQueue`."""
        super().__init__(max_batch_rows, cost)
        self._ring: deque[DrrState] = deque()
        self._largest = 0.0
        """Seconds that the largest packet so far should take, at k = 1."""

    def _choose(self, now: float, taken: dict[DrrState, Taken], expired: list[Row]) -> list[Row]:
        in_vain = 0
        while self._ring:
            state = self._ring[0]
            if not (state.waiting and state.room):
                self._ring.popleft()
                state.listed, state.due_quantum = False, True
                continue
            rows = self._packet(state)
            seconds = self._seconds(rows)
            if state.due_quantum:
                state.deficit += self._quantum(state)
                state.due_quantum = False
            if seconds <= state.deficit:
                for row in rows:
                    self._take(state, row, taken)
                return rows
            state.due_quantum = True
            self._ring.rotate(-1)
            in_vain += 1
            if in_vain >= len(self._ring):
                self._skip_rounds()
                in_vain = 0
        return []

    def _packet(self, state: DrrState) -> list[Row]:
        line, limit = state.line, state.policy.max_rows_in_flight
        most = self.max_batch_rows if limit is None else min(self.max_batch_rows, limit - state.running)
        while line[0].state != "waiting":
            line.popleft()
        return list(islice((row for row in line if row.state == "waiting"), most))

    def _seconds(self, rows: list[Row]) -> float:
        """What a batch of these ``rows`` of one vFM should take."""
        seconds = self.cost.batch((row.size for row in rows), 1)
        self._largest = max(self._largest, seconds)
        return self.k * seconds

    def _quantum(self, state: DrrState) -> float:
        weight = state.policy.weight
        return self.k * self._largest * weight * len(self._ring) / max(self._weight, weight)

    def _skip_rounds(self) -> None:
        """Nobody could send in a whole round: give all the quanta of the rounds until somebody can, less one."""
        able = [state for state in self._ring if state.waiting and state.room]
        lacking = [(self._seconds(self._packet(state)) - state.deficit) / self._quantum(state) for state in able]
        rounds = max(0, math.ceil(min(lacking, default=0.0)) - 1)
        for state in able:
            state.deficit += rounds * self._quantum(state)

    def _chosen(self, taken: dict[DrrState, Taken]) -> None:
        for state in taken:
            self._left(state)

    def _left(self, state: DrrState) -> None:
        if not state.waiting:
            state.deficit = min(0.0, state.deficit)  # an idle vFM keeps its debt, not its credit

    def _settle(self, state: DrrState, seconds: float, weight: float | None = None) -> None:
        state.deficit -= seconds

    # ---- vFMs and rows ----

    def _new_state(self, name: str, policy: VfmPolicy, now: float) -> DrrState:
        return DrrState(name, policy, now)

    def _arrived(self, state: DrrState, row: Row, now: float) -> None:
        state.line.append(row)
        self._room_again(state)

    def _returned(self, state: DrrState, rows: list[Row]) -> None:
        state.line = in_line([*rows, *state.line])

    def _room_again(self, state: DrrState) -> None:
        if state.waiting and state.room and not state.listed:
            state.listed = True
            self._ring.append(state)

    def _policy_changed(self, state: DrrState) -> None:
        self._room_again(state)

    def _rows(self) -> Iterable[Row]:
        return [row for state in self._vfms.values() for row in state.line]
