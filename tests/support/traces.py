"""Random traces through a `BatchFairQueue`, and an independent check of every rule at every step.

`World` owns a queue, engines and a clock, calls the queue, and checks what it does against the rules as the module
states them, from the queue's public side only (`tag`, `virtual_time`, `tolerance`, `k`, `cost`). `random_trace` drives
one with arrivals, cancels, deadlines, weights, wrong cost models, noise, hiccups, deaths and vFMs that come and go.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import pytest

from fmplex_backend.scheduling.base import TRUST_SECONDS
from fmplex_backend.scheduling.cost import CostModel
from fmplex_backend.scheduling.fair import BatchFairQueue, Tuning
from fmplex_backend.scheduling.interface import Batch, Rejected, Row, VfmPolicy

ENDED = {"served", "rejected", "expired", "cancelled"}
TINY = 1e-9


@dataclass
class Flight:
    """A batch on an engine."""

    batch: Batch
    ends: float
    measured: float


@dataclass
class Vfm:
    """The model's view of one vFM."""

    name: str
    policy: VfmPolicy
    known: bool = True
    waiting: list[Row] = field(default_factory=list)
    running: int = 0
    asked_at: float = -math.inf
    served: float = 0.0
    """W/w: device time charged over weight; batches that run count at their predicted price."""
    psi: float = 0.0
    """Largest charge for one row, over weight."""

    @property
    def room(self) -> bool:
        limit = self.policy.max_rows_in_flight
        return limit is None or self.running < limit

    @property
    def backlogged(self) -> bool:
        return bool(self.waiting) and self.room


class World:
    """See the module. ``device`` is what batches truly cost; ``cost`` what the queue believes."""

    def __init__(
        self,
        cost: CostModel,
        device: CostModel | None = None,
        *,
        max_batch_rows: int = 16,
        slots: int | None = None,
        engines: int = 1,
        tuning: Tuning | None = None,
    ) -> None:
        self.queue = BatchFairQueue(max_batch_rows, cost, slots=slots, tuning=tuning)
        self.device = device or cost
        self.tuning = tuning or Tuning()
        self.max_rows, self.slots = max_batch_rows, slots or max_batch_rows
        self.resident: list[Hashable] | None = [] if slots else None
        """Adapters in the device's slots, by last use."""
        self.engines = engines
        self.now = 0.0
        self.vfms: dict[str, Vfm] = {}
        self.flights: list[Flight] = []
        self.rows: list[Row] = []
        self.ends: dict[int, str] = {}
        self.passed: Counter[int] = Counter()
        """Row → batches that took a younger row of its vFM while it waited."""
        self.t_max = self.e_max = 0.0
        self.spans: dict[tuple[str, str], list[float]] = {}
        """Pair that is backlogged → least and greatest Wᵢ/wᵢ − Wⱼ/wⱼ since it is."""
        self.measured_at = -math.inf
        self.lively_at = -math.inf
        self.batches = 0
        self.charged: dict[str, float] = defaultdict(float)
        self.pairs_checked = 0
        self.tightest = 0.0
        """How close any pair came to Theorem 1's bound, 1 is at it."""

    # ---- calls ----

    def add(self, name: str, policy: VfmPolicy) -> None:
        revived = self.vfms.get(name)
        self.queue.add_vfm(name, policy, self.now)
        if revived is None:
            self.vfms[name] = Vfm(name, policy)
            assert self.queue.tag(name) == self.queue.virtual_time, "a new vFM starts at V"
        else:
            revived.policy, revived.known = policy, True
        self._after()

    def change(self, name: str, policy: VfmPolicy) -> None:
        self.queue.change_vfm(name, policy, self.now)
        self.vfms[name].policy = policy
        self._after()

    def remove(self, name: str) -> None:
        self.queue.remove_vfm(name)
        self.vfms[name].known = False
        self._after()

    def submit(
        self, name: str, sizes: list[int], patience: float | None = None, contents: int | None = None
    ) -> list[Row]:
        """``contents``: rows of a size hold one of so many texts, or for None no two are the same."""
        vfm = self.vfms[name]
        deadline = None if patience is None else self.now + patience
        adapter = name if int(name[1:]) % 3 else None
        twins = [None if contents is None else (adapter, size, len(self.rows) * size % contents) for size in sizes]
        rows = [Row(name, size, None, deadline, adapter, twin) for size, twin in zip(sizes, twins, strict=True)]
        self.rows += rows
        tag, v = self.queue.tag(name), self.queue.virtual_time
        wakes = not vfm.waiting and vfm.room
        full = len(vfm.waiting) + len(rows) > vfm.policy.max_queue_size
        if full:
            with pytest.raises(Rejected):
                self.queue.check(name, len(rows), self.now)
        else:
            self.queue.check(name, len(rows), self.now)
        try:
            self.queue.submit(rows, self.now)
        except Rejected:
            assert {row.state for row in rows} == {"rejected"}
            assert full
            return rows
        assert not full
        if not vfm.backlogged and any(other.backlogged for other in self.vfms.values()):
            self.lively_at = self.now
        vfm.waiting += rows
        vfm.asked_at = self.now
        expected = max(tag, v) if wakes else tag
        assert self.queue.tag(name) == expected, "wake-up is exactly max(v, V)"
        self._after()
        return rows

    def cancel(self, row: Row) -> None:
        waited = row.state == "waiting"
        assert self.queue.cancel(row) == waited
        if waited:
            self._unwait([row])
        self._after()

    def expire(self) -> None:
        decision = self.queue.expire(self.now)
        assert decision.batch is None
        self._expired(decision.expired)
        waiting = [row.deadline for vfm in self.vfms.values() for row in vfm.waiting if row.deadline is not None]
        assert not waiting or (decision.wake_at is not None and decision.wake_at <= min(waiting))
        self._after()

    def run_batch(self, noise: float = 1.0) -> Batch | None:
        """Let a free engine have the next batch; it will take ``noise`` times what the device needs."""
        before = {name: self.queue.tag(name) for name in self.vfms}
        v = self.queue.virtual_time
        active = {name for name, vfm in self.vfms.items() if vfm.backlogged}
        self.t_max = max(self.t_max, self.queue.tolerance)
        caps = [self.cap()]
        decision = self.queue.next_batch(self.now, self.resident)
        self._expired(decision.expired)
        batch = decision.batch
        if batch is None:
            assert not any(vfm.backlogged for vfm in self.vfms.values()), "work conserving"
            return None
        caps.append(self.cap())  # differs where the only rows of a vFM with an objective have just expired
        self._check_batch(batch, max(caps))
        self._check_order(batch, before, active, v)
        by_vfm: dict[str, list[Row]] = defaultdict(list)
        for row in batch.rows:
            by_vfm[row.vfm].append(row)
        for name, rows in by_vfm.items():
            vfm = self.vfms[name]
            self._unwait(rows)
            vfm.running += len(rows)
            limit = vfm.policy.max_rows_in_flight
            assert limit is None or vfm.running <= limit
            youngest = max(row.number for row in rows)
            for row in vfm.waiting:
                if row.number < youngest:
                    self.passed[row.number] += 1
                    assert self.passed[row.number] <= self.tuning.max_bypass, "bypass bound"
            share = batch.shares[name]
            price = batch.predicted * share.fraction
            vfm.served += price / share.weight
            vfm.psi = max(vfm.psi, share.largest / share.weight)
            self.e_max = max(self.e_max, abs(price - share.tentative) / share.weight)
        self._check_full(batch, min(caps))
        sizes = [row.size for row in physical(batch.rows)]
        if self.resident is not None:
            used = {row.adapter for row in batch.rows if row.adapter is not None}
            self.resident = [*(a for a in self.resident if a not in used), *used][-self.slots :]
        measured = noise * self.device.batch(sizes, len(batch.shares))
        self.flights.append(Flight(batch, self.now + measured, measured))
        self.batches += 1
        self._after(served=True)
        return batch

    def complete(self, flight: Flight) -> None:
        self.flights.remove(flight)
        batch = flight.batch
        before = {name: self.queue.tag(name) for name in batch.shares}
        woke = {name: not self.vfms[name].backlogged for name in batch.shares}
        v = self.queue.virtual_time
        charges = self.queue.complete(batch, flight.measured, self.now)
        self.measured_at = self.now
        bill = min(flight.measured, 3 * batch.predicted)
        assert math.isclose(sum(charges.values()), bill, rel_tol=1e-9), "charges sum to min(measured, 3·predicted)"
        for name, share in batch.shares.items():
            vfm = self.vfms[name]
            assert math.isclose(charges[name], bill * share.fraction, rel_tol=1e-9)
            vfm.running -= share.rows
            vfm.served += (charges[name] - batch.predicted * share.fraction) / share.weight
            self.charged[name] += charges[name]
            self.e_max = max(self.e_max, abs(charges[name] - share.tentative) / share.weight)
            settled = before[name] + (charges[name] - batch.predicted * share.fraction) / share.weight
            if name not in self.queue._vfms:
                continue
            expected = settled
            if woke[name] and vfm.backlogged:
                expected = max(settled, v)
            assert math.isclose(self.queue.tag(name), expected, rel_tol=1e-12, abs_tol=1e-12), "settled as charged"
        assert {row.state for row in batch.rows} == {"served"}
        if not self.flights and not self.queue.waiting():
            v = max([v, *(self.queue.tag(name) for name in self.queue._vfms)])
        assert self.queue.virtual_time == v, "V follows batches when they are made, and catches up when all is idle"
        self._after(served=True)

    def lose(self, flight: Flight) -> None:
        """The engine died under the batch."""
        self.flights.remove(flight)
        self.queue.put_back(flight.batch, self.now)
        for row in flight.batch.rows:
            self.vfms[row.vfm].waiting.append(row)
            assert row.state == "waiting"
        for name, share in flight.batch.shares.items():
            vfm = self.vfms[name]
            vfm.waiting.sort(key=lambda row: row.number)
            vfm.running -= share.rows
            vfm.served -= flight.batch.predicted * share.fraction / share.weight
        if self.engines > 1:
            self.spans.clear()
        self._after(served=True)

    # ---- checks ----

    def alone(self, row: Row) -> float:
        return self.queue.k * (self.queue.cost.alpha + self.queue.cost.work(row.size) + self.queue.cost.gamma)

    def cap(self) -> float:
        """Rule 4, once more."""
        launch = self.queue.k * self.queue.cost.alpha
        objectives = [
            vfm.policy.latency_slo
            for vfm in self.vfms.values()
            if vfm.policy.latency_slo is not None and (vfm.waiting or self.now - vfm.asked_at <= 1.0)
        ]
        lively = self.now - self.lively_at <= 1.0
        cap = (self.tuning.c_cap_lively if lively else self.tuning.c_cap) * launch
        return cap if not objectives else min(cap, max(1.5 * launch, min(objectives) / 3))

    def _check_batch(self, batch: Batch, cap: float) -> None:
        cost, k, rows = self.queue.cost, self.queue.k, batch.rows
        alike = Counter(row if row.twin is None else row.twin for row in rows)
        n, names = len(alike), list(dict.fromkeys(row.vfm for row in rows))
        assert n == batch.physical_rows
        assert n <= self.max_rows
        assert len(rows) <= 4 * self.max_rows
        assert len({row.adapter for row in rows} - {None}) <= self.slots
        assert {row.state for row in rows} == {"running"}
        works = [cost.work(row.size) for row in physical(rows)]
        longest = max(works)
        predicted = k * (cost.alpha + n * longest + cost.gamma * len(names))
        assert math.isclose(batch.predicted, predicted, rel_tol=1e-9)
        waste = n * longest - sum(works)
        assert waste <= self.tuning.padding * cost.alpha + TINY, "padding budget"
        if n > 1:
            assert predicted <= cap + TINY, "cost cap"
        total = cost.alpha + sum(works) + cost.gamma * len(names)
        assert list(batch.shares) == names
        assert math.isclose(sum(share.fraction for share in batch.shares.values()), 1.0, rel_tol=1e-9)
        for name, share in batch.shares.items():
            mine = [row for row in rows if row.vfm == name]
            parts = [1 / alike[row if row.twin is None else row.twin] for row in mine]
            own = [part * cost.work(row.size) for row, part in zip(mine, parts, strict=True)]
            part = cost.alpha * sum(parts) / n + sum(own) + cost.gamma
            assert share.rows == len(mine)
            assert math.isclose(share.fraction, part / total, rel_tol=1e-9), "the charge rule"
            limit = k * (cost.alpha + sum(own) + cost.gamma) + self.tuning.padding * k * cost.alpha * share.fraction
            assert predicted * share.fraction <= limit * (1 + TINY), "Theorem 2"
        trusted = self.now - self.measured_at <= TRUST_SECONDS
        for row in rows:
            if row.deadline is not None:
                assert self.now < row.deadline, "an expired row was run"
                assert (not trusted and n == 1) or self.now + predicted <= row.deadline + TINY, "made late"

    def _check_order(self, batch: Batch, before: dict[str, float], active: set[str], v: float) -> None:
        """Follow the tags pick by pick: nobody is served beyond T of the least, and V ends where rule 7 says."""
        queue, cost, k = self.queue, self.queue.cost, self.queue.k
        active &= self.vfms.keys()  # a removed vFM whose last row has just expired is gone
        tags = {name: before[name] for name in self.vfms}
        left = {name: {id(row) for row in vfm.waiting} for name, vfm in self.vfms.items()}
        live = sum(len(rows) for rows in left.values())
        # Rows that expired on the way were waiting when the launch was divided.
        tentative: dict[str, float] = defaultdict(float)
        running = {name: vfm.running for name, vfm in self.vfms.items()}
        launches = {cost.alpha / min(self.max_rows, live + extra) for extra in range(self.expired_now + 1)}
        launch = min(
            launches, key=lambda x: abs(self._first_charge(batch, x) - batch.shares[batch.rows[0].vfm].tentative)
        )
        last = 0.0
        seen: set[object] = set()
        for row in batch.rows:
            waiting = [
                name
                for name in active
                if left[name]
                and ((limit := self.vfms[name].policy.max_rows_in_flight) is None or running[name] < limit)
            ]
            assert row.vfm in waiting
            assert tags[row.vfm] <= min(tags[name] for name in waiting) + queue.tolerance + TINY, "beyond T"
            last = tags[row.vfm]
            comes_along = row.twin is not None and row.twin in seen
            seen.add(row.twin)
            work = 0 if comes_along else launch + cost.work(row.size)
            charge = k * (work + (0 if row.vfm in tentative else cost.gamma))
            tentative[row.vfm] += charge
            tags[row.vfm] += charge / self.vfms[row.vfm].policy.weight
            left[row.vfm].remove(id(row))
            running[row.vfm] += 1
        for name, share in batch.shares.items():
            assert math.isclose(share.tentative, tentative[name], rel_tol=1e-9), "tentative charge"
            settled = before[name] + batch.predicted * share.fraction / self.vfms[name].policy.weight
            assert math.isclose(queue.tag(name), settled, rel_tol=1e-9, abs_tol=1e-12)
        least = [queue.tag(name) for name in active if left[name] and self._room(name, running[name])]
        reached = min([last, *least])
        assert math.isclose(queue.virtual_time, max(v, reached), rel_tol=1e-9, abs_tol=1e-12), "V"

    def _first_charge(self, batch: Batch, launch: float) -> float:
        """What the first row's vFM would have been charged in all, at that part of the launch a row."""
        name = batch.rows[0].vfm
        own = [self.queue.cost.work(row.size) for row in physical(batch.rows) if row.vfm == name]
        return self.queue.k * (launch * len(own) + sum(own) + self.queue.cost.gamma)

    def _room(self, name: str, running: int) -> bool:
        limit = self.vfms[name].policy.max_rows_in_flight
        return limit is None or running < limit

    def _check_full(self, batch: Batch, cap: float) -> None:
        """Where one vFM alone still waits, its oldest row must not have fitted."""
        left = [vfm for vfm in self.vfms.values() if vfm.backlogged]
        if len(left) != 1:
            return
        (vfm,) = left
        row = min(vfm.waiting, key=lambda row: row.number)
        if len(batch.rows) >= 4 * self.max_rows or (row.twin is not None and row.twin in {r.twin for r in batch.rows}):
            return
        cost, k = self.queue.cost, self.queue.k
        works = [cost.work(r.size) for r in (*physical(batch.rows), row)]
        names = {r.vfm for r in (*batch.rows, row)}
        predicted = k * (cost.alpha + len(works) * max(works) + cost.gamma * len(names))
        dues = [due for r in (*batch.rows, row) for due in (r.deadline, r.due) if due is not None and due != math.inf]
        fits = (
            len(works) <= self.max_rows
            and len({r.adapter for r in (*batch.rows, row)} - {None}) <= self.slots
            and len(works) * max(works) - sum(works) <= self.tuning.padding * cost.alpha - TINY
            and predicted <= cap - TINY
            and all(self.now + predicted < due for due in dues)
        )
        assert not fits, "a row that fits was left out of a batch with room"

    def _expired(self, rows: list[Row]) -> None:
        self.expired_now = len(rows)
        trusted = self.now - self.measured_at <= TRUST_SECONDS
        for row in rows:
            assert row.state == "expired"
            assert row.deadline is not None
            assert row.deadline <= self.now or (trusted and self.now + self.alone(row) > row.deadline)
        self._unwait(rows)
        if rows:
            self._forget()

    def _unwait(self, rows: list[Row]) -> None:
        gone = {id(row) for row in rows}
        for name in {row.vfm for row in rows}:
            vfm = self.vfms[name]
            count = len(vfm.waiting)
            vfm.waiting = [row for row in vfm.waiting if id(row) not in gone]
            assert len(vfm.waiting) == count - sum(row.vfm == name for row in rows), "a row left that did not wait"
            if not vfm.backlogged:
                self._break_spans(name)

    def _break_spans(self, name: str) -> None:
        self.spans = {pair: span for pair, span in self.spans.items() if name not in pair}

    def _forget(self) -> None:
        for name, vfm in list(self.vfms.items()):
            if not (vfm.known or vfm.waiting or vfm.running):
                del self.vfms[name]
                self._break_spans(name)

    def _after(self, *, served: bool = False) -> None:
        """What holds after every call; ``served``: one that has moved somebody's W."""
        self._forget()
        queue = self.queue
        assert set(queue._vfms) == set(self.vfms)
        assert queue.virtual_time >= getattr(self, "last_v", 0.0), "V is monotone"
        self.last_v = queue.virtual_time
        assert queue.waiting() == sum(len(vfm.waiting) for vfm in self.vfms.values())
        backlogged = sorted(name for name, vfm in self.vfms.items() if vfm.backlogged)
        for name in set(self.vfms) - set(backlogged):
            self._break_spans(name)
        if not served:
            return
        for i, j in itertools.combinations(backlogged, 2):
            a, b = self.vfms[i], self.vfms[j]
            gap = a.served - b.served
            span = self.spans.setdefault((i, j), [gap, gap])
            span[0], span[1] = min(span[0], gap), max(span[1], gap)
            bound = 2 * self.t_max + a.psi + b.psi + 5 * self.e_max * self.engines
            assert span[1] - span[0] <= bound * (1 + TINY) + TINY, f"Theorem 1: {i} and {j}"
            self.tightest = max(self.tightest, (span[1] - span[0]) / bound)
            self.pairs_checked += 1

    def finish(self) -> None:
        """Run to the end: every row has ended in exactly one way, and nothing is left behind."""
        for _ in range(100_000):
            if self.flights:
                flight = min(self.flights, key=lambda f: f.ends)
                self.now = max(self.now, flight.ends)
                self.complete(flight)
            if self.run_batch() is None and not self.flights:
                break
        assert {row.state for row in self.rows} <= ENDED
        assert self.queue.waiting() == 0
        assert all(not vfm.waiting and not vfm.running for vfm in self.vfms.values())

    def check_memory(self) -> None:
        """Heaps and lines hold no more than a small multiple of what lives."""
        queue, waiting = self.queue, self.queue.waiting()
        slack = 2 * waiting + 2 * len(self.vfms) + 256
        for name in ("_least", "_due", "_deadlines", "_objectives"):
            assert len(getattr(queue, name)) <= slack, name
        assert queue._twin_entries == sum(map(len, queue._twins.values())) <= slack
        for state in queue._vfms.values():
            kept = sum(len(line) for line in state.classes.values())
            assert kept <= 2 * state.waiting + 64 + 2 * self.max_rows, state.name
            assert len(state.passes) <= self.tuning.max_bypass


def physical(rows: Sequence[Row]) -> list[Row]:
    """What the backbone runs: of twins, the first."""
    return list({row if row.twin is None else row.twin: row for row in reversed(rows)}.values())[::-1]


WEIGHTS = (0.25, 0.5, 1.0, 2.0, 4.0)
COSTS = (
    CostModel(alpha=5e-3, beta=2e-6, gamma=2e-5),
    CostModel(alpha=12e-3, beta=1.7e-4, gamma=2e-4, delta=1e-7),
    CostModel(alpha=1e-3, beta=1e-3, gamma=0.0, delta=1e-6),
    CostModel(alpha=1e-2, beta=1e-4, gamma=5e-3),
)
SIZES = ((16,), (8, 12, 16), (4, 16, 24, 60, 120), (10, 400), (7, 20, 30, 45, 60, 90, 120, 180, 250, 380, 500))


def random_policy(rng: random.Random) -> VfmPolicy:
    return VfmPolicy(
        weight=rng.choice(WEIGHTS),
        max_queue_size=rng.choice((5, 40, 512)),
        max_rows_in_flight=rng.choice((None, None, None, 1, 5)),
        latency_slo=rng.choice((None, None, None, 0.02, 0.2)),
    )


def random_trace(seed: int, steps: int = 40) -> World:
    """A trace to its end, every rule checked on the way; returns the world for what else is to be seen."""
    rng = random.Random(seed)
    cost = rng.choice(COSTS)
    device = cost
    if rng.random() < 0.4:  # the model is wrong: in scale, or in shape
        wrong = rng.choice((0.05, 0.3, 3.0, 20.0))
        device = CostModel(cost.alpha * wrong, cost.beta * rng.choice((1, wrong)), cost.gamma, cost.delta)
    tuning = Tuning(
        max_bypass=rng.choice((1, 2, 8)),
        max_skip=rng.choice((1, 4, 16)),
        c_cap=rng.choice((6.0, 32.0)),
        c_cap_lively=rng.choice((3.0, 12.0)),
    )
    world = World(
        cost,
        device,
        max_batch_rows=rng.choice((1, 4, 16, 64)),
        slots=rng.choice((None, None, 2)),
        engines=rng.choice((1, 1, 2)),
        tuning=tuning,
    )
    names = [f"v{i}" for i in range(rng.choice((2, 3, 6, 12)))]
    for name in names:
        world.add(name, random_policy(rng))
    sizes = rng.choice(SIZES)
    busy = rng.choice((0.3, 1.0, 4.0))
    patience = rng.choice((None, 0.05, 0.5, 5.0))
    deaths = rng.random() < 0.3
    contents = rng.choice((None, None, 1, 3))
    while world.batches < steps and len(world.rows) < 40 * steps:
        _random_calls(world, rng, names, sizes, busy, patience, contents)
        while len(world.flights) < world.engines:
            if world.run_batch(_noise(rng)) is None:
                break
        if world.flights:
            flight = min(world.flights, key=lambda f: f.ends)
            world.now = max(world.now, flight.ends)
            if deaths and rng.random() < 0.05:
                world.lose(flight)
            else:
                world.complete(flight)
        else:
            world.now += rng.expovariate(1 / cost.alpha) if rng.random() < 0.95 else 3.0
    world.finish()
    world.check_memory()
    return world


def _noise(rng: random.Random) -> float:
    draw = rng.random()
    return 50.0 if draw < 0.02 else (rng.uniform(0.7, 1.5) if draw < 0.6 else 1.0)


def _random_calls(
    world: World,
    rng: random.Random,
    names: list[str],
    sizes: tuple[int, ...],
    busy: float,
    patience: float | None,
    contents: int | None,
) -> None:
    for _ in range(rng.randint(0, max(1, round(busy * min(world.max_rows, 8))))):
        name = rng.choice(names)
        vfm = world.vfms.get(name)
        if vfm is not None and vfm.known:
            count = rng.choice((1, 1, 1, 2, 8, 30))
            wait = patience if patience is not None and rng.random() < 0.5 else None
            world.submit(name, [rng.choice(sizes) for _ in range(count)], wait, contents)
    draw = rng.random()
    if draw < 0.15 and world.rows:
        for row in rng.sample(world.rows[-40:], min(len(world.rows[-40:]), rng.choice((1, 10)))):
            world.cancel(row)
    elif draw < 0.2:
        name = rng.choice(names)
        vfm = world.vfms.get(name)
        if vfm is None or not vfm.known:
            world.add(name, random_policy(rng))
        elif rng.random() < 0.5:
            world.remove(name)
        else:
            world.change(name, random_policy(rng))
    elif draw < 0.25:
        world.expire()
    elif draw < 0.26:
        world.queue.change_cost(rng.choice(COSTS))
