"""Virtual Token Counter (Sheng et al., OSDI 2024): the vFM that has been served the fewest tokens gives the next row.

Every vFM has a counter of tokens served per weight, which grows as its rows are taken. Rows of different vFMs share
batches, up to the batch limit. A vFM that wakes up is lifted to the least counter of those that are active, or where
nobody is, to that of the last that was: idle time is no credit. For comparison: fair in tokens, blind to what padding
and launches cost the device.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable

from fmplex_backend.scheduling.base import PolicyQueue, Taken, VfmState
from fmplex_backend.scheduling.cost import CostModel
from fmplex_backend.scheduling.interface import Row, VfmPolicy


class VtcState(VfmState):
    """A vFM's line and counter."""

    __slots__ = ("active", "counter", "line", "stamp")

    def __init__(self, name: str, policy: VfmPolicy, now: float) -> None:
        super().__init__(name, policy, now)
        self.line: deque[Row] = deque()
        """In order of arrival. Rows that wait no more leave when they come to the front."""
        self.counter = 0.0
        """Tokens served, per weight."""
        self.active = False
        """Whether it has rows that wait, and room to run one."""
        self.stamp = -1
        """Of its one valid entry in the heap of counters."""


class TokenCounterQueue(PolicyQueue[VtcState]):
    """See the module. One decision costs O(rows of the batch · log vFMs)."""

    def __init__(self, max_batch_rows: int, cost: CostModel) -> None:
        """See `PolicyQueue`."""
        super().__init__(max_batch_rows, cost)
        self._least: list[tuple[float, int, VtcState]] = []
        """Lazy heap of active vFMs by counter: an entry counts while its stamp is its vFM's."""
        self._active = 0
        self._last_counter = 0.0
        """Of the vFM that was active last."""

    def counter(self, vfm: str) -> float:
        """Tokens that ``vfm`` was served, per weight, with what it was lifted by."""
        return self._vfms[vfm].counter

    def _choose(self, now: float, taken: dict[VtcState, Taken], expired: list[Row]) -> list[Row]:
        rows: list[Row] = []
        while len(rows) < self.max_batch_rows and (state := self._top()) is not None:
            row = state.line.popleft()
            if row.state != "waiting":
                continue
            self._take(state, row, self.cost.work(row.size), taken)
            state.counter += row.size / state.policy.weight
            self._refresh(state)
            rows.append(row)
        return rows

    def _top(self) -> VtcState | None:
        """The active vFM with the least counter."""
        heap = self._least
        while heap:
            _, stamp, state = heap[0]
            if stamp == state.stamp and state.active:
                return state
            heapq.heappop(heap)
        return None

    def _refresh(self, state: VtcState, lift: bool = True) -> None:
        """Put ``state`` where it belongs in the heap; ``lift`` its counter where it wakes up."""
        active = state.waiting > 0 and state.room
        if lift and active and not state.active:
            top = self._top()
            state.counter = max(state.counter, self._last_counter if top is None else top.counter)
        elif state.active and not active:
            self._last_counter = state.counter
        self._active += active - state.active
        state.active = active
        state.stamp = next(self._entries)
        if active:
            heapq.heappush(self._least, (state.counter, state.stamp, state))
        if len(self._least) > 2 * self._active + 64:
            self._least = [entry for entry in self._least if entry[1] == entry[2].stamp and entry[2].active]
            heapq.heapify(self._least)

    # ---- vFMs and rows ----

    def _new_state(self, name: str, policy: VfmPolicy, now: float) -> VtcState:
        return VtcState(name, policy, now)

    def _arrived(self, state: VtcState, row: Row, now: float) -> None:
        state.line.append(row)
        self._room_again(state)

    def _returned(self, state: VtcState, rows: list[Row]) -> None:
        back = {row.number: row for row in (*rows, *state.line) if row.state == "waiting"}
        state.line = deque(back[number] for number in sorted(back))
        state.counter -= sum(row.size for row in rows) / state.policy.weight
        self._refresh(state, lift=False)  # it was not idle

    def _left(self, state: VtcState) -> None:
        if not state.waiting:
            self._refresh(state)

    def _room_again(self, state: VtcState) -> None:
        if not state.active:
            self._refresh(state)

    def _policy_changed(self, state: VtcState) -> None:
        self._refresh(state)

    def _rows(self) -> Iterable[Row]:
        return [row for state in self._vfms.values() for row in state.line]
