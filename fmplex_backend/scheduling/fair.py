"""Batch-aware fair queueing: rows of different vFMs share batches, and each vFM gets its weighted share of the device.

Start-time fair queueing (Goyal, Vin and Cheng, 1996) made aware of batches. Every vFM has a weight w and a virtual time
v, in seconds of device time per weight: v says how much it has had. The system's virtual time V says how much a vFM
that has kept busy has had. What a batch costs, and the charge rule, are in `fmplex_backend.scheduling.cost`.

Rules

1. **Wake-up.** A vFM that gets a row while it has none, or room to run while it had none, resumes at v = max(v, V):
   credit is not hoarded, debt is kept.
2. **Urgent rows first**, by the time they are due, while that is within two average batches; but only of vFMs with
   v ≤ least v + T. A row that is late anyway is not urgent any more.
3. **Fair fill.** Then the backlogged vFM with the least v gives a row: its oldest, or once it is in the batch the one
   whose length fits the batch best. A vFM none of whose rows fits holds the others: nobody is served beyond its v + T.
   This is gone through up to three times: for rows that add hardly any padding (ρ·α/16) and whose adapters are in the
   device's slots; for others that add hardly any; for any that fit. Taken in the order of v alone, rows of many lengths
   would use up the padding that a batch may waste while it is small. A resident adapter is no more than that: whose
   adapter is not resident is held back by at most T, like who does not fit.
4. **What fits.** The first row always does. Others fit if the batch keeps within its rows and adapters, wastes at most
   ρ·α on padding, costs at most ``cap``, and makes no row in it late.
   cap = min(c_cap·kα, max(1.5·kα, a third of the tightest latency objective of the vFMs active lately)). c_cap is 32
   (a launch is 3 % of such a batch), and 12 while vFMs come and go next to others that wait, since a row that comes
   has to wait for the batch that runs.
5. **Order within a vFM** is by arrival, but for lengths and deadlines; a row is passed over by younger rows of its vFM
   in at most ``max_bypass`` batches, after that only the oldest row of its vFM may be taken.
6. **Charges.** A row that is taken costs its vFM ψ = k·(α/min(b_max, rows waiting) + u + γ if it is the vFM's first),
   at once: v += ψ/w. When the batch is complete it is priced by the charge rule, and v is settled to that; when it has
   run, to the same share of min(measured, 3·predicted).
7. **V** follows: V = max(V, min(v of the last row taken before its charge, least v)). When everything is idle,
   V = max(V, every v): who has had more does not pay for it later.
8. A row that cannot meet its deadline even alone is never run.
9. **Twins**, rows that are the same to the backbone, run as one: the first is taken for what it costs, the others, of
   vFMs with v ≤ least v + T, come along for γ. Priced by the charge rule, they share what the one row costs.

**Theorem 1** (row-level SFQ bound). While vFMs i and j stay backlogged, over any span of batches
|Wᵢ/wᵢ − Wⱼ/wⱼ| ≤ 2T + ψᵢ + ψⱼ + 5e, where W is the device time charged, ψ the largest charge of one row over its
weight, and e the largest |settled − tentative| of one batch over the weight (with m engines, m batches).
*Proof sketch.* A row of j is only taken at v_j ≤ least v + T ≤ vᵢ + T, after which v_j ≤ vᵢ + T + ψⱼ. Settling moves
either by at most e, a finished batch never lowers v below where it was before, and by rule 7 whoever wakes up does so
at most e below the least v that j's last row was taken at. So v_j − vᵢ ≤ T + ψⱼ + 2e whenever no batch runs, and W/w
is what v gained.

**Theorem 2.** At predicted cost, nobody pays more for a shared batch than for the same rows alone plus ρ·kα times his
share of the batch. *Proof.* The batch costs k(α + Σu + γK) + k·waste, waste ≤ ρα; i's share of the first part is
k(α·nᵢ/n + Uᵢ + γ), and alone he would have paid at least k(α + Uᵢ + γ).

One decision costs O(rows of the batch · log vFMs), however many wait. T = 2kα and ρ = 1 by default. What the
constants do is shown by ``fmplex bench simulate``; see docs/results.md.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left
from collections import deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

from fmplex_backend.scheduling.base import PolicyQueue, Taken, VfmState, in_line
from fmplex_backend.scheduling.cost import CostModel
from fmplex_backend.scheduling.interface import Row, VfmPolicy
from fmplex_backend.scheduling.ranking import Ranking

LENGTH_EDGES = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384)
"""Upper ends of the length classes; the last class is open."""
_BY_FIT = tuple(
    tuple(sorted(range(len(LENGTH_EDGES) + 1), key=lambda index: (index > longest, abs(index - longest))))
    for longest in range(len(LENGTH_EDGES) + 1)
)
"""Length class of a batch's longest row → the classes in the order in which their rows fit it: without more padding for
all first."""
URGENT_BATCHES = 2.0
ACTIVE_SECONDS = 1.0
"""A vFM that had a row within this time is active: its latency objective bounds the batches."""
OBJECTIVE_PART = 1 / 3
"""A row may have to wait for a batch before its own: two thirds, and one for noise and what is not device time."""
MOST_TWINS = 4
"""Most rows in a batch, in times of what the backbone may run."""
CAP_FLOOR = 1.5
"""No objective presses a batch below this many launches: throughput would collapse."""


@dataclass(frozen=True)
class Tuning:
    """The constants of the rules."""

    c_cap: float = 32.0
    """Most that a batch may cost, in launches (kα)."""
    c_cap_lively: float = 12.0
    """Likewise, while vFMs come and go."""
    tolerance: float = 2.0
    """T, in launches: how far apart virtual times may drift for the sake of deadlines and full batches."""
    padding: float = 1.0
    """ρ, in launches: what a batch may waste on padding."""
    snug: float = 1 / 16
    """What one row may add to that in the first pass."""
    max_bypass: int = 8
    max_skip: int = 16
    """Rows or vFMs that are tried in vain before a batch is taken as it is."""


class FairState(VfmState):
    """A vFM's virtual time and its rows by length class."""

    __slots__ = ("asked_at", "classes", "passes", "stale", "tag", "youngest")

    def __init__(self, name: str, policy: VfmPolicy, now: float, tag: float) -> None:
        super().__init__(name, policy, now)
        self.tag = tag
        """v: seconds of device time per weight."""
        self.asked_at = -math.inf
        self.classes: dict[int, deque[Row]] = {}
        """Length class → rows in order of arrival. Rows that wait no more leave when they come to the front."""
        self.stale = 0
        """Rows that left from the middle, at most."""
        self.youngest = 0
        """Highest arrival number in the batch being made."""
        self.passes: list[int] = []
        """Heap of the highest ``youngest`` of all its batches, ``max_bypass`` of them: a waiting row that is older than
        the least of them was passed over in so many batches."""

    def heads(self) -> dict[int, Row]:
        """Length class → its oldest waiting row."""
        heads = {}
        empty = None
        for index, line in self.classes.items():
            while line and line[0].state != "waiting":
                line.popleft()
            if line:
                heads[index] = line[0]
            else:
                empty = index
        if empty is not None:
            self.classes = {index: line for index, line in self.classes.items() if line}
        return heads

    def sweep(self) -> None:
        """Drop rows that wait no more, once they are more than those that do."""
        if self.stale > self.waiting + 64:
            self.stale = 0
            for index, line in list(self.classes.items()):
                self.classes[index] = deque(row for row in line if row.state == "waiting")


class _Draft:
    """The batch being made."""

    __slots__ = (
        "adapters",
        "cap",
        "held",
        "last_tag",
        "latest",
        "launch",
        "longest",
        "passed_cold",
        "physical",
        "rows",
        "size_class",
        "slack",
        "taken",
        "total",
        "twins",
        "warm_only",
    )

    def __init__(self, taken: dict[FairState, Taken], cap: float, launch: float) -> None:
        self.taken = taken
        self.rows: list[Row] = []
        self.physical = 0
        """What the backbone runs of them: twins count once."""
        self.twins: set[Hashable] = set()
        self.adapters: set[Hashable] = set()
        self.warm_only = False
        """Whether only rows are taken whose adapters are in slots already."""
        self.passed_cold = False
        """Whether one was not taken for that reason."""
        self.held = math.inf
        """Greatest v of who may be served, for the sake of those whose rows did not fit."""
        self.longest = 0.0
        """uT: the work of its longest row."""
        self.size_class = 0
        """The length class of that row."""
        self.total = 0.0
        """Σu."""
        self.cap = cap
        """Seconds that it may take."""
        self.launch = launch
        """What a row is charged for the launch, before it is known with how many it shares it."""
        self.slack = math.inf
        """Seconds of padding that one more row may add."""
        self.latest = math.inf
        """When the first of its rows would be late."""
        self.last_tag = 0.0
        """v of the vFM that gave the last row, before the charge."""


class BatchFairQueue(PolicyQueue[FairState]):
    """See the module."""

    def __init__(
        self,
        max_batch_rows: int,
        cost: CostModel,
        *,
        slots: int | None = None,
        tuning: Tuning | None = None,
    ) -> None:
        """``slots``: most adapters in a batch."""
        super().__init__(max_batch_rows, cost)
        self.tuning = tuning or Tuning()
        if slots is not None:
            self.slots = slots
        self.virtual_time = 0.0
        """V."""
        self._least = Ranking[FairState]()
        """The backlogged vFMs, which have rows that wait and room to run one, by v."""
        self._due: list[tuple[float, int, Row]] = []
        """Lazy heap of rows by the time they are due."""
        self._objectives = Ranking[FairState]()
        """vFMs that were active lately, by latency objective."""
        self._twins: dict[Hashable, list[Row]] = {}
        """Rows by what they are to the backbone; those that wait no more leave in time."""
        self._twin_entries = 0
        self._charged: set[FairState] = set()
        """Who was charged since everything was idle: nobody else can be ahead of V."""
        self._running = 0
        """Batches."""
        self._lively_at = -math.inf
        """When a vFM last became backlogged while others were."""
        self._last_tag = 0.0

    # ---- next_batch ----

    def _choose(self, now: float, taken: dict[FairState, Taken], expired: list[Row]) -> list[Row]:
        launch = self.cost.alpha / min(self.max_batch_rows, self._waiting)
        draft = _Draft(taken, self._cap(now), launch)
        self._take_urgent(draft, now)
        draft.slack = self.tuning.snug * self.tuning.padding * self.cost.alpha
        draft.warm_only = self._resident is not None
        self._fill(draft, now, expired)
        draft.warm_only = False
        if draft.passed_cold:
            self._fill(draft, now, expired)
        draft.slack = math.inf
        self._fill(draft, now, expired)
        self._last_tag = draft.last_tag
        return draft.rows

    def _cap(self, now: float) -> float:
        """Rule 4: what a batch may cost, in seconds."""
        launch = self.k * self.cost.alpha
        lively = now - self._lively_at <= ACTIVE_SECONDS
        cap = (self.tuning.c_cap_lively if lively else self.tuning.c_cap) * launch
        objective = self._tightest_objective(now)
        return cap if objective is None else min(cap, max(CAP_FLOOR * launch, OBJECTIVE_PART * objective))

    def _take_urgent(self, draft: _Draft, now: float) -> None:
        """Rule 2."""
        if len(self._due) > 2 * self._waiting + 64:
            self._due = [entry for entry in self._due if entry[2].state == "waiting"]
            heapq.heapify(self._due)
        heap = self._due
        aside: list[tuple[float, int, Row]] = []
        horizon = now + URGENT_BATCHES * self.average
        while heap and heap[0][0] <= horizon and len(aside) <= self.tuning.max_skip:
            entry = heapq.heappop(heap)
            row = entry[2]
            if row.state != "waiting" or row.due < now + self.alone(row):
                continue
            state = self._vfms[row.vfm]
            if self._is_eligible(state, row) and self._fits(draft, state, row, now):
                self._take_into(draft, state, row, now)
            else:
                aside.append(entry)
        for entry in aside:
            heapq.heappush(heap, entry)

    def _is_eligible(self, state: FairState, row: Row) -> bool:
        top = self._least.least()
        if top is None or state not in self._least or state.tag > top.tag + self.tolerance:
            return False
        oldest = min(state.heads().values(), key=_arrival)
        return row is oldest or not self._is_overdue(state, oldest)

    def _fill(self, draft: _Draft, now: float, expired: list[Row]) -> None:
        """Rule 3."""
        draft.held = math.inf
        aside: list[tuple[float, int, FairState]] = []
        while draft.physical < self.max_batch_rows and len(aside) <= self.tuning.max_skip:
            state = self._least.least()
            if state is None or state.tag > draft.held:
                break
            row = self._next_row(draft, state, now, expired)
            if row is not None:
                self._take_into(draft, state, row, now)
            elif state in self._least:
                aside.append(self._least.set_aside())
                draft.held = min(draft.held, state.tag + self.tolerance)
        self._least.bring_back(aside)

    def _next_row(self, draft: _Draft, state: FairState, now: float, expired: list[Row]) -> Row | None:
        """The row that ``state`` gives, None where none fits. Rows found to be too late are expired (rule 8)."""
        heads = state.heads()
        for row in heads.values():
            if row.deadline is not None and self._too_late(row, now):
                self._end_waiting(row, "expired")
                expired.append(row)
                return self._next_row(draft, state, now, expired) if state in self._least else None
        oldest = min(heads.values(), key=_arrival) if len(heads) > 1 else row
        if len(heads) == 1 or self._is_overdue(state, oldest):
            return oldest if self._fits(draft, state, oldest, now) else None
        if state not in draft.taken and self._fits(draft, state, oldest, now):
            return oldest
        for index in _BY_FIT[draft.size_class]:
            if index in heads and self._fits(draft, state, heads[index], now):
                return heads[index]
        return None

    def _is_overdue(self, state: FairState, row: Row) -> bool:
        """Rule 5: whether ``row`` was passed over as often as it may be."""
        return len(state.passes) == self.tuning.max_bypass and row.number < state.passes[0]

    def _fits(self, draft: _Draft, state: FairState, row: Row, now: float) -> bool:
        """Rule 4."""
        if row.adapter is not None and row.adapter not in draft.adapters:
            if draft.warm_only and row.adapter not in self._resident:  # type: ignore[operator]
                draft.passed_cold = True
                return False
            if draft.rows and len(draft.adapters) >= self.slots:
                return False
        before = draft.physical
        if not before:
            return True
        if len(draft.rows) >= MOST_TWINS * self.max_batch_rows:
            return False
        cost = self.cost
        vfms = len(draft.taken) + (state not in draft.taken)
        if row.twin in draft.twins:
            padded = before * draft.longest
        else:
            rows = before + 1
            if rows > self.max_batch_rows:
                return False
            work = cost.work(row.size)
            padded = rows * max(draft.longest, work)
            if padded - before * draft.longest - work > draft.slack:
                return False
            if padded - draft.total - work > self.tuning.padding * cost.alpha:
                return False
        seconds = self.k * (cost.alpha + padded + cost.gamma * vfms)
        return seconds <= draft.cap and now + seconds <= min(draft.latest, self._latest(row, now))

    def _latest(self, row: Row, now: float) -> float:
        """When a batch with ``row`` must be done; its objective counts while it can be met, and not below the floor."""
        if row.due == math.inf:
            return math.inf
        latest = math.inf if row.deadline is None else row.deadline
        if row.due < latest and row.due >= now + self.alone(row):
            latest = min(latest, max(row.due, now + CAP_FLOOR * self.k * self.cost.alpha))
        return latest

    def _take_into(self, draft: _Draft, state: FairState, row: Row, now: float) -> None:
        """Rules 6 and 9: take ``row``, charge for it at once, and let its twins come along."""
        first = row.twin is None or row.twin not in draft.twins
        work, launch = (self.cost.work(row.size), draft.launch) if first else (0.0, 0.0)
        part = self._take(state, row, draft.taken)
        charge = self.k * (launch + work + (self.cost.gamma if part.rows == 1 else 0.0))
        part.tentative += charge
        part.largest = max(part.largest, charge)
        draft.last_tag = state.tag
        state.tag += charge / state.policy.weight
        state.youngest = max(state.youngest, row.number)
        state.stale += 1
        draft.rows.append(row)
        draft.physical += first
        draft.total += work
        if row.adapter is not None:
            draft.adapters.add(row.adapter)
        if work >= draft.longest:
            draft.longest, draft.size_class = work, _length_class(row)
        draft.latest = min(draft.latest, self._latest(row, now))
        self._refresh(state)
        if first and row.twin is not None:
            draft.twins.add(row.twin)
            self._take_twins(draft, row, now)

    def _take_twins(self, draft: _Draft, row: Row, now: float) -> None:
        """Rule 9: the other waiting rows that are the same to the backbone."""
        others = self._twins.pop(row.twin, [])
        self._twin_entries -= len(others)
        for other in others:
            if other.state != "waiting":
                continue
            state = self._vfms[other.vfm]
            late = other.deadline is not None and self._too_late(other, now)
            eligible = not late and self._is_eligible(state, other) and state.tag <= draft.held
            if eligible and self._fits(draft, state, other, now):
                self._take_into(draft, state, other, now)
            else:
                self._note_twin(other)

    def _chosen(self, taken: dict[FairState, Taken]) -> None:
        """Rules 5 and 7, once the batch is complete."""
        self._running += 1
        for state in taken:
            if len(state.passes) < self.tuning.max_bypass:
                heapq.heappush(state.passes, state.youngest)
            else:
                heapq.heappushpop(state.passes, state.youngest)
            state.youngest = 0
            state.sweep()
        top = self._least.least()
        reached = self._last_tag if top is None else min(self._last_tag, top.tag)
        self.virtual_time = max(self.virtual_time, reached)

    def upcoming(self, limit: int) -> list[Hashable]:
        """See `Queue`: of the vFMs that have had least."""
        adapters = {row.adapter for state in self._least.about_least(limit) for row in state.heads().values()}
        return [adapter for adapter in adapters if adapter is not None][:limit]

    # ---- virtual times ----

    @property
    def tolerance(self) -> float:
        """T, in seconds per weight."""
        return self.tuning.tolerance * self.k * self.cost.alpha

    def tag(self, vfm: str) -> float:
        """v of ``vfm``, in seconds per weight."""
        return self._vfms[vfm].tag

    def _refresh(self, state: FairState) -> None:
        """Put ``state`` where it belongs in the heap of virtual times; rule 1 where it becomes backlogged."""
        if not (state.waiting and state.room):
            self._least.remove(state)
            return
        if state not in self._least:
            state.tag = max(state.tag, self.virtual_time)
        self._least.put(state, state.tag)

    def _settle(self, state: FairState, seconds: float, weight: float | None = None) -> None:
        state.tag += seconds / (weight or state.policy.weight)
        self._charged.add(state)
        if state in self._least:
            self._refresh(state)

    def _batch_ended(self) -> None:
        self._running -= 1
        if not self._running and not self._waiting:
            self.virtual_time = max([self.virtual_time, *(state.tag for state in self._charged)])
            self._charged.clear()

    # ---- vFMs and rows ----

    def _new_state(self, name: str, policy: VfmPolicy, now: float) -> FairState:
        return FairState(name, policy, now, self.virtual_time)

    def _policy_changed(self, state: FairState) -> None:
        self._refresh(state)
        self._objectives.remove(state)
        self._note_objective(state)

    def _forget_if_done(self, state: FairState) -> None:
        super()._forget_if_done(state)
        if state.name not in self._vfms:
            self._charged.discard(state)
            self._objectives.remove(state)

    def _arrived(self, state: FairState, row: Row, now: float) -> None:
        state.classes.setdefault(_length_class(row), deque()).append(row)
        state.asked_at = now
        self._note_due(row)
        self._note_twin(row)
        self._note_objective(state)
        if state not in self._least:
            if self._least.least() is not None:
                self._lively_at = now
            self._refresh(state)

    def _returned(self, state: FairState, rows: list[Row]) -> None:
        for index in {_length_class(row) for row in rows}:
            line = state.classes.get(index, ())
            state.classes[index] = in_line([*line, *(row for row in rows if _length_class(row) == index)])
        for row in rows:
            self._note_due(row)
            self._note_twin(row)

    def _left(self, state: FairState) -> None:
        state.stale += 1
        state.sweep()
        if not state.waiting:
            self._refresh(state)

    def _room_again(self, state: FairState) -> None:
        if state not in self._least:
            self._refresh(state)

    def _rows(self) -> Iterable[Row]:
        return [row for state in self._vfms.values() for line in state.classes.values() for row in line]

    def _note_due(self, row: Row) -> None:
        if row.due == math.inf:
            return
        heapq.heappush(self._due, (row.due, next(self._entries), row))

    def _note_twin(self, row: Row) -> None:
        if row.twin is None:
            return
        self._twins.setdefault(row.twin, []).append(row)
        self._twin_entries += 1
        if self._twin_entries > 2 * self._waiting + 64:
            kept = {key: [row for row in rows if row.state == "waiting"] for key, rows in self._twins.items()}
            self._twins = {key: rows for key, rows in kept.items() if rows}
            self._twin_entries = sum(map(len, self._twins.values()))

    def _note_objective(self, state: FairState) -> None:
        objective = state.policy.latency_slo
        if objective is not None and state not in self._objectives:
            self._objectives.put(state, objective)

    def _tightest_objective(self, now: float) -> float | None:
        """In seconds, of the vFMs that have rows or had some lately."""
        while (state := self._objectives.least()) is not None:
            if state.waiting or now - state.asked_at <= ACTIVE_SECONDS:
                return state.policy.latency_slo
            self._objectives.remove(state)
        return None


def _arrival(row: Row) -> int:
    return row.number


def _length_class(row: Row) -> int:
    return bisect_left(LENGTH_EDGES, row.size)
