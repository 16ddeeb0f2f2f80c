"""Virtual Token Counter (Sheng et al., OSDI 2024): the vFM that has been served the fewest tokens gives the next row.

Every vFM has a counter of tokens served per weight, which grows as its rows are taken. Rows of different vFMs share
batches, up to the batch limit. A vFM that wakes up is lifted to the least counter of those that are active, or where
nobody is, to that of the last that was: idle time is no credit. For comparison: fair in tokens, blind to what padding
and launches cost the device.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from fmplex_backend.scheduling.base import PolicyQueue, Taken, VfmState, in_line
from fmplex_backend.scheduling.cost import CostModel
from fmplex_backend.scheduling.interface import Row, VfmPolicy
from fmplex_backend.scheduling.ranking import Ranking


class VtcState(VfmState):
    """A vFM's line and counter."""

    __slots__ = ("counter", "line")

    def __init__(self, name: str, policy: VfmPolicy, now: float) -> None:
        super().__init__(name, policy, now)
        self.line: deque[Row] = deque()
        """In order of arrival. Rows that wait no more leave when they come to the front."""
        self.counter = 0.0
        """Tokens served, per weight."""


class TokenCounterQueue(PolicyQueue[VtcState]):
    """See the module. One decision costs O(rows of the batch · log vFMs)."""

    def __init__(self, max_batch_rows: int, cost: CostModel) -> None:
        """See `PolicyQueue`."""
        super().__init__(max_batch_rows, cost)
        self._least = Ranking[VtcState]()
        """The active vFMs, which have rows that wait and room to run one, by counter."""
        self._last_counter = 0.0
        """Of the vFM that was active last."""

    def counter(self, vfm: str) -> float:
        """Tokens that ``vfm`` was served, per weight, with what it was lifted by."""
        return self._vfms[vfm].counter

    def _choose(self, now: float, taken: dict[VtcState, Taken], expired: list[Row]) -> list[Row]:
        rows: list[Row] = []
        while len(rows) < self.max_batch_rows and (state := self._least.least()) is not None:
            row = state.line.popleft()
            if row.state != "waiting":
                continue
            self._take(state, row, taken)
            state.counter += row.size / state.policy.weight
            self._refresh(state)
            rows.append(row)
        return rows

    def _refresh(self, state: VtcState, lift: bool = True) -> None:
        """Put ``state`` where it belongs in the heap; ``lift`` its counter where it wakes up."""
        was_active = state in self._least
        if not (state.waiting and state.room):
            if was_active:
                self._last_counter = state.counter
            self._least.remove(state)
            return
        if lift and not was_active:
            top = self._least.least()
            state.counter = max(state.counter, self._last_counter if top is None else top.counter)
        self._least.put(state, state.counter)

    # ---- vFMs and rows ----

    def _new_state(self, name: str, policy: VfmPolicy, now: float) -> VtcState:
        return VtcState(name, policy, now)

    def _arrived(self, state: VtcState, row: Row, now: float) -> None:
        state.line.append(row)
        self._room_again(state)

    def _returned(self, state: VtcState, rows: list[Row]) -> None:
        state.line = in_line([*rows, *state.line])
        state.counter -= sum(row.size for row in rows) / state.policy.weight
        self._refresh(state, lift=False)  # it was not idle

    def _left(self, state: VtcState) -> None:
        if not state.waiting:
            self._refresh(state)

    def _room_again(self, state: VtcState) -> None:
        if state not in self._least:
            self._refresh(state)

    def _policy_changed(self, state: VtcState) -> None:
        self._refresh(state)

    def _rows(self) -> Iterable[Row]:
        return [row for state in self._vfms.values() for row in state.line]
