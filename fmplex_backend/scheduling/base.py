"""What all policies have in common: admission, limits, deadlines and the bill. Which rows come next is theirs.

A policy derives from `PolicyQueue`, keeps its waiting rows in whatever order it likes, and overrides the hooks at the
end of the class.
"""

from __future__ import annotations

import heapq
import itertools
import math
from abc import abstractmethod
from collections import Counter, deque
from collections.abc import Container, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from fmplex_backend.scheduling.cost import CostModel
from fmplex_backend.scheduling.interface import (
    AllFull,
    Batch,
    Decision,
    Queue,
    QueueFull,
    RateExceeded,
    Rejected,
    Row,
    Share,
    VfmPolicy,
)

CLIP = 3.0
"""A batch is charged at most this many times what was predicted for it."""
K_GAIN = 0.05
"""How fast k follows the device: a batch moves it by this part of the (logarithmic) error."""
TRUST_SECONDS = 1.0
"""Without a measurement for so long, a prediction alone does not expire a row."""
LONGEST_HINT, SHORTEST_HINT = 60.0, 0.01


class VfmState:
    """What is known of one vFM; policies derive from it."""

    __slots__ = ("known", "name", "policy", "row_cost", "running", "tokens", "tokens_at", "waiting")

    def __init__(self, name: str, policy: VfmPolicy, now: float) -> None:
        self.name, self.policy = name, policy
        self.known = True
        """False once it is removed; it goes when its last row has ended."""
        self.waiting = 0
        """Rows that wait."""
        self.running = 0
        """Rows in batches that run."""
        self.tokens, self.tokens_at = float(policy.burst), now
        self.row_cost = 0.0
        """Seconds that one of its rows is charged, lately."""

    @property
    def room(self) -> bool:
        """Whether another row of it may run now."""
        limit = self.policy.max_rows_in_flight
        return limit is None or self.running < limit


@dataclass(slots=True)
class Taken:
    """What one vFM has in the batch being made."""

    rows: int = 0
    tentative: float = 0.0
    largest: float = 0.0
    """The largest tentative charge of one row."""


def in_line(rows: Iterable[Row]) -> deque[Row]:
    """Those of ``rows`` that wait, each once, in order of arrival."""
    waiting = {row.number: row for row in rows if row.state == "waiting"}
    return deque(waiting[number] for number in sorted(waiting))


StateT = TypeVar("StateT", bound=VfmState)


class PolicyQueue(Queue, Generic[StateT]):
    """See the module."""

    def __init__(self, max_batch_rows: int, cost: CostModel) -> None:
        """``max_batch_rows``: most rows in a batch; ``cost``: what batches are predicted and charged by."""
        self.max_batch_rows = max_batch_rows
        self.slots = max_batch_rows
        """Most adapters in a batch."""
        self.max_waiting_rows: int | None = None
        """Of all vFMs together; each may have its even part of them whatever the others have."""
        self.cost = cost
        self.k = 1.0
        """How much slower the device is than the cost model, as measured lately."""
        self._vfms: dict[str, StateT] = {}
        self._waiting = 0
        self._weight = 0.0
        """Of the vFMs with waiting rows."""
        self._arrivals = 0
        self._batches = 0
        self._entries = itertools.count()
        """Tells apart the entries of a heap that are equal otherwise."""
        self._deadlines: list[tuple[float, int, Row]] = []
        """Lazy heap of rows by deadline."""
        self._measured_at = -math.inf
        self._resident: Container[Hashable] | None = None
        """Adapters in the slots of the device that the batch is for."""
        self.average = cost.alpha
        """Seconds that a batch takes, lately."""

    # ---- vFMs ----

    def add_vfm(self, vfm: str, policy: VfmPolicy, now: float) -> None:
        """See `Queue`."""
        state = self._vfms.get(vfm)
        if state is None:
            self._vfms[vfm] = self._new_state(vfm, policy, now)
        elif state.known:
            raise ValueError(f"vFM {vfm!r} is known already")
        else:  # it still drains: its rows and its debt are the same vFM's
            state.known = True
            self._change(state, policy, now)

    def change_vfm(self, vfm: str, policy: VfmPolicy, now: float) -> None:
        """See `Queue`."""
        self._change(self._known(vfm), policy, now)

    def _change(self, state: StateT, policy: VfmPolicy, now: float) -> None:
        if state.waiting:
            self._weight += policy.weight - state.policy.weight
        state.tokens, state.tokens_at = min(self._tokens(state, now), float(policy.burst)), now
        state.policy = policy
        self._policy_changed(state)

    def remove_vfm(self, vfm: str) -> None:
        """See `Queue`."""
        state = self._known(vfm)
        state.known = False
        self._forget_if_done(state)

    def change_cost(self, cost: CostModel) -> None:
        """See `Queue`."""
        self.cost, self.k = cost, 1.0

    def change_slots(self, slots: int) -> None:
        """See `Queue`; only `fair` keeps to it, from others a batch may have to be run in parts."""
        self.slots = slots

    def change_max_batch_rows(self, rows: int) -> None:
        """See `Queue`."""
        self.max_batch_rows = rows

    def _known(self, vfm: str) -> StateT:
        state = self._vfms[vfm]
        if not state.known:
            raise KeyError(vfm)
        return state

    def _forget_if_done(self, state: StateT) -> None:
        if not (state.known or state.waiting or state.running):
            del self._vfms[state.name]

    # ---- rows in ----

    def check(self, vfm: str, rows: int, now: float) -> None:
        """See `Queue`."""
        self._check(self._known(vfm), rows, now)

    def submit(self, rows: list[Row], now: float) -> None:
        """See `Queue`."""
        state = self._known(rows[0].vfm)
        try:
            self._check(state, len(rows), now)
        except Rejected:
            for row in rows:
                row.state = "rejected"
            raise
        state.tokens, state.tokens_at = self._tokens(state, now) - len(rows), now
        objective = state.policy.latency_slo
        for row in rows:
            self._arrivals += 1
            row.number, row.submitted = self._arrivals, now
            row.due = now + objective if objective is not None else math.inf
            if row.deadline is not None:
                row.due = min(row.due, row.deadline)
                heapq.heappush(self._deadlines, (row.deadline, next(self._entries), row))
            self._put(state, row)
            self._arrived(state, row, now)

    def _put(self, state: StateT, row: Row) -> None:
        """Count ``row`` as waiting."""
        row.state = "waiting"
        if not state.waiting:
            self._weight += state.policy.weight
        state.waiting += 1
        self._waiting += 1

    def _leave(self, state: StateT) -> None:
        """One row of ``state`` waits no more."""
        state.waiting -= 1
        self._waiting -= 1
        if not state.waiting:
            self._weight -= state.policy.weight
        if not self._waiting:
            self._weight = 0.0  # sheds what additions and subtractions have rounded

    def _check(self, state: StateT, rows: int, now: float) -> None:
        policy = state.policy
        if (over := state.waiting + rows - policy.max_queue_size) > 0:
            raise QueueFull(state.name, rows, state.waiting, policy.max_queue_size, self._until_room(state, over))
        most = self.max_waiting_rows
        if most is not None and self._waiting + rows > most and state.waiting + rows > most // len(self._vfms):
            over = self._waiting + rows - most
            raise AllFull(state.name, rows, state.waiting, self._waiting, most, self._until_room(state, over))
        if policy.rate is not None:
            tokens = self._tokens(state, now)
            if rows > tokens + 1e-9:  # a caller that waits as told must find what rounding took
                wait = (rows - tokens) / policy.rate
                raise RateExceeded(state.name, rows, policy.rate, policy.burst, wait)

    def _tokens(self, state: StateT, now: float) -> float:
        """What of its rate limit it may use now."""
        rate = state.policy.rate
        if rate is None:
            return math.inf
        return min(float(state.policy.burst), state.tokens + max(0.0, now - state.tokens_at) * rate)

    def _until_room(self, state: StateT, rows: int) -> float:
        """Seconds until so many waiting rows of ``state`` should have run, at its share of the device."""
        share = state.policy.weight / max(self._weight, state.policy.weight)
        each = state.row_cost or self.k * (self.cost.alpha / self.max_batch_rows + self.cost.work(64))
        return min(LONGEST_HINT, max(SHORTEST_HINT, rows * each / share))

    # ---- rows out ----

    def cancel(self, row: Row) -> bool:
        """See `Queue`. The row leaves its place in line when its turn comes."""
        if row.state != "waiting":
            return False
        self._end_waiting(row, "cancelled")
        return True

    def rows_of(self, vfm: str) -> list[Row]:
        """See `Queue`."""
        return [row for row in self._rows() if row.vfm == vfm and row.state == "waiting"]

    def _end_waiting(self, row: Row, state: str) -> None:
        row.state = state  # type: ignore[assignment]
        owner = self._vfms[row.vfm]
        self._leave(owner)
        self._left(owner)
        self._forget_if_done(owner)

    def expire(self, now: float) -> Decision:
        """See `Queue`."""
        expired: list[Row] = []
        heap = self._deadlines
        while heap:
            row = heap[0][2]
            if row.state == "waiting":
                if not self._too_late(row, now):
                    break
                self._end_waiting(row, "expired")
                expired.append(row)
            heapq.heappop(heap)
        if len(heap) > 2 * self._waiting + 64:
            heap[:] = [entry for entry in heap if entry[2].state == "waiting"]
            heapq.heapify(heap)
        return Decision(None, expired, heap[0][0] if heap else None)

    def _too_late(self, row: Row, now: float) -> bool:
        """Whether ``row`` cannot meet its deadline, even alone."""
        if row.deadline is None:
            return False
        if now >= row.deadline:
            return True
        trusted = now - self._measured_at <= TRUST_SECONDS
        return trusted and now + self.alone(row) > row.deadline

    def alone(self, row: Row) -> float:
        """Seconds that ``row`` should take in a batch of its own."""
        return self.k * (self.cost.alpha + self.cost.work(row.size) + self.cost.gamma)

    def next_batch(self, now: float, resident: Container[Hashable] | None = None) -> Decision:
        """See `Queue`."""
        decision = self.expire(now)
        if not self._waiting:
            return decision
        self._resident = resident
        taken: dict[StateT, Taken] = {}
        rows = self._choose(now, taken, decision.expired)
        if not rows:
            return decision
        self._batches += 1
        batch = self._price(rows, taken)
        for state, part in taken.items():
            self._settle(state, batch.predicted * batch.shares[state.name].fraction - part.tentative)
        self._chosen(taken)
        return Decision(batch, decision.expired)

    def upcoming(self, limit: int) -> list[Hashable]:
        """See `Queue`; nothing, where a policy does not know."""
        return []

    def _take(self, state: StateT, row: Row, taken: dict[StateT, Taken]) -> Taken:
        """Make ``row`` run, and note it in ``taken``."""
        row.state = "running"
        state.running += 1
        self._leave(state)
        part = taken.get(state)
        if part is None:
            part = taken[state] = Taken()
        part.rows += 1
        return part

    def _price(self, rows: list[Row], taken: dict[StateT, Taken]) -> Batch:
        cost, seen = self.cost, Counter(row if row.twin is None else row.twin for row in rows)
        n = len(seen)
        count = {state.name: 0.0 for state in taken}
        work = dict(count)
        for row in rows:  # twins share the one row that they are to the backbone
            part = 1.0 if row.twin is None else 1.0 / seen[row.twin]
            count[row.vfm] += part
            work[row.vfm] += part * cost.work(row.size)
        parts = {state: cost.part(count[state.name], work[state.name], n) for state in taken}
        total = sum(parts.values())
        shares = {
            state.name: Share(part.rows, parts[state] / total, part.tentative, part.largest, state.policy.weight)
            for state, part in taken.items()
        }
        predicted = self.k * (cost.alpha + n * cost.work(max(row.size for row in rows)) + cost.gamma * len(taken))
        return Batch(self._batches, tuple(rows), predicted, shares, n)

    # ---- the bill ----

    def complete(self, batch: Batch, measured: float, now: float) -> Mapping[str, float]:
        """See `Queue`."""
        bill = min(measured, CLIP * batch.predicted)
        ratio = min(CLIP, max(1 / CLIP, measured / batch.predicted))
        self.k = min(1e6, max(1e-6, self.k * ratio**K_GAIN))
        self._measured_at = now
        self.average += 0.1 * (bill - self.average)
        for row in batch.rows:
            row.state = "served"
        charges = {}
        for name, share in batch.shares.items():
            charges[name] = bill * share.fraction
            state = self._vfms[name]
            each = charges[name] / share.rows
            state.row_cost += (each - state.row_cost) * (0.1 if state.row_cost else 1.0)
            self._settle(state, (bill - batch.predicted) * share.fraction, share.weight)
            self._ran(state, share.rows)
        self._batch_ended()
        return charges

    def put_back(self, batch: Batch, now: float) -> None:
        """See `Queue`."""
        for row in batch.rows:
            self._put(self._vfms[row.vfm], row)
            if row.deadline is not None:
                heapq.heappush(self._deadlines, (row.deadline, next(self._entries), row))
        for name, share in batch.shares.items():
            state = self._vfms[name]
            self._settle(state, -batch.predicted * share.fraction, share.weight)
            self._returned(state, [row for row in batch.rows if row.vfm == name])
            self._ran(state, share.rows)
        self._batch_ended()

    def _ran(self, state: StateT, rows: int) -> None:
        state.running -= rows
        self._room_again(state)
        self._forget_if_done(state)

    def drain(self) -> list[Row]:
        """See `Queue`."""
        rows = [row for row in self._rows() if row.state == "waiting"]
        for row in rows:
            state = self._vfms[row.vfm]
            row.state = "running"
            state.running += 1
            self._leave(state)
            self._left(state)
        return rows

    def waiting(self, vfm: str | None = None) -> int:
        """See `Queue`."""
        if vfm is None:
            return self._waiting
        state = self._vfms.get(vfm)
        return state.waiting if state else 0

    # ---- what a policy says ----

    @abstractmethod
    def _new_state(self, name: str, policy: VfmPolicy, now: float) -> StateT:
        """What is kept of a vFM."""

    @abstractmethod
    def _arrived(self, state: StateT, row: Row, now: float) -> None:
        """Keep ``row``, which waits from now on."""

    @abstractmethod
    def _returned(self, state: StateT, rows: list[Row]) -> None:
        """Keep ``rows``, which ran in vain, at their old places, by ``number``; they may still be there."""

    @abstractmethod
    def _choose(self, now: float, taken: dict[StateT, Taken], expired: list[Row]) -> list[Row]:
        """Choose rows, calling `_take` on each; rows that turn out to be too late go to ``expired``."""

    @abstractmethod
    def _rows(self) -> Iterable[Row]:
        """Every row that is kept, also those that wait no more."""

    def _policy_changed(self, state: StateT) -> None:
        """``state.policy`` is another one now."""

    def _left(self, state: StateT) -> None:
        """A waiting row of ``state`` was cancelled or has expired."""

    def _room_again(self, state: StateT) -> None:
        """Fewer rows of ``state`` run than before."""

    def _settle(self, state: StateT, seconds: float, weight: float | None = None) -> None:
        """Charge ``seconds`` more (or fewer) to ``state``, at ``weight`` or the present one."""

    def _chosen(self, taken: dict[StateT, Taken]) -> None:
        """The batch is priced and settled."""

    def _batch_ended(self) -> None:
        """A batch completed or came back."""
