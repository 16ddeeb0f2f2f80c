"""The event loop: a load, a queue and a device in virtual time."""

from __future__ import annotations

import heapq
import itertools
import math
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fmplex_backend.scheduling.base import PolicyQueue
from fmplex_backend.scheduling.interface import Batch, Decision, Rejected, Row
from fmplex_tools.bench.simulate.device import Device
from fmplex_tools.bench.simulate.trace import Load

REPORT_EVERY = 500
"""Events between two calls of ``progress``."""


@dataclass
class Counts:
    """Rows of a vFM, or of several, by how they ended. Nothing is left out: they sum to ``submitted``."""

    submitted: int = 0
    served: int = 0
    rejected: int = 0
    expired: int = 0
    left: int = 0
    """Still waiting or running when a closed loop was stopped."""
    latencies: list[float] = field(default_factory=list)
    """Seconds from submission to answer, of rows that came within the window."""


@dataclass
class Outcome:
    """What happened. The window leaves out the warm-up and what is run after the last arrival."""

    window: tuple[float, float]
    flooders: frozenset[str] = frozenset()
    by_vfm: dict[str, Counts] = field(default_factory=dict)
    rows: float = 0.0
    """Run within the window; a batch counts by the part of its time that lies in it, here and below."""
    batches: float = 0.0
    distinct: float = 0.0
    """vFMs in batches."""
    busy: float = 0.0
    """Seconds of device time."""
    useful: float = 0.0
    """Of them, for the rows' own tokens."""
    padding: float = 0.0
    charged: dict[str, float] = field(default_factory=dict)
    """Seconds, as the queue's bill says."""
    backlogged: dict[str, float] = field(default_factory=dict)
    """Seconds during which a vFM had rows waiting."""
    decisions: list[float] = field(default_factory=list)
    """Seconds of real time that each decision took."""

    @property
    def seconds(self) -> float:
        """Length of the window."""
        return self.window[1] - self.window[0]

    @property
    def light(self) -> Counts:
        """Of all vFMs but the flooders."""
        return _summed(counts for vfm, counts in self.by_vfm.items() if vfm not in self.flooders)

    @property
    def flood(self) -> Counts:
        """Of the flooders."""
        return _summed(counts for vfm, counts in self.by_vfm.items() if vfm in self.flooders)


def _summed(several: Iterable[Counts]) -> Counts:
    total = Counts()
    for counts in several:
        for name in ("submitted", "served", "rejected", "expired", "left"):
            setattr(total, name, getattr(total, name) + getattr(counts, name))
        total.latencies += counts.latencies
    return total


def simulate(
    queue: PolicyQueue[Any],
    load: Load,
    device: Device,
    *,
    seed: int = 0,
    engines: int = 1,
    warm_up: float = 0.1,
    progress: Callable[[float], None] = lambda _: None,
) -> Outcome:
    """Run ``load`` through an empty ``queue``. Everything but the decision times follows from ``seed``.

    Arrivals stop at the load's span. What waits then is run to its end, but for a closed loop. ``warm_up`` is the part
    of the span before the window; ``progress`` is told the part that is done.
    """
    return _Run(queue, load, device, seed, engines, warm_up, progress).outcome()


class _Run:
    def __init__(
        self,
        queue: PolicyQueue[Any],
        load: Load,
        device: Device,
        seed: int,
        engines: int,
        warm_up: float,
        progress: Callable[[float], None],
    ) -> None:
        self._queue, self._load, self._device, self._engines = queue, load, device, engines
        self._progress = progress
        self._chance = random.Random(seed)
        self._sizes = _endless(load, seed)
        self._out = Outcome((warm_up * load.span, load.span), load.flooders, {vfm: Counts() for vfm in load.policies})
        self._running: list[tuple[float, int, float, Batch]] = []
        """Heap: end, order, start."""
        self._order = itertools.count()
        self._since: dict[str, float] = {}
        """vFM → since when it has rows waiting."""

    def outcome(self) -> Outcome:
        for name, policy in self._load.policies.items():
            self._queue.add_vfm(name, policy, 0.0)
        if self._load.backlog:
            self._closed_loop()
        else:
            self._open_loop()
        for vfm, since in self._since.items():
            self._backlogged(vfm, since, self._load.span)
        return self._out

    def _open_loop(self) -> None:
        arrivals, at, wake = self._load.arrivals, 0, math.inf
        for event in itertools.count():
            arrives = arrivals[at].time if at < len(arrivals) else math.inf
            ends = self._running[0][0] if self._running else math.inf
            now = min(arrives, ends, wake)
            if now == math.inf:
                return
            if now == ends:
                self._finish()
            elif now == arrives:
                self._submit(now, arrivals[at].vfm, arrivals[at].sizes)
                at += 1
            decision = self._start(now)
            wake = decision.wake_at if decision.wake_at is not None and decision.wake_at > now else math.inf
            if event % REPORT_EVERY == 0:
                self._progress(at / len(arrivals))

    def _closed_loop(self) -> None:
        load, now = self._load, 0.0
        for _ in range(load.backlog):
            for vfm in load.policies:
                self._submit(now, vfm, (next(self._sizes),))
        for event in itertools.count():
            self._start(now)
            now = self._running[0][0]
            if now >= load.span:
                break
            self._finish()
            if event % REPORT_EVERY == 0:
                self._progress(now / load.span)
        for ends, _, start, batch in self._running:
            shares = {vfm: share.fraction * (ends - start) for vfm, share in batch.shares.items()}
            self._measure(batch, start, ends, shares)
            self._counts_left(batch.rows)
        self._counts_left(self._queue.drain())

    def _counts_left(self, rows: Any) -> None:
        for row in rows:
            self._of(row.vfm).left += 1

    def _of(self, vfm: str) -> Counts:
        return self._out.by_vfm[vfm]

    def _submit(self, now: float, vfm: str, sizes: tuple[int, ...]) -> None:
        timeout = self._load.timeout
        deadline = None if timeout is None else now + timeout
        rows = [Row(vfm, size, None, deadline) for size in sizes]
        counts = self._of(vfm)
        counts.submitted += len(rows)
        try:
            self._queue.submit(rows, now)
        except Rejected:
            counts.rejected += len(rows)
        else:
            self._since.setdefault(vfm, now)

    def _start(self, now: float) -> Decision:
        """Let idle engines have batches; the last decision."""
        queue = self._queue
        while len(self._running) < self._engines:
            began = time.perf_counter()
            decision = queue.next_batch(now)
            took = time.perf_counter() - began
            self._expired(decision, now)
            if (batch := decision.batch) is None:
                return decision
            self._out.decisions.append(took)
            if self._load.backlog:
                for row in batch.rows:
                    self._submit(now, row.vfm, (next(self._sizes),))
            else:
                self._emptied(batch.shares, now)
            ends = now + self._device.seconds(batch, self._chance)
            heapq.heappush(self._running, (ends, next(self._order), now, batch))
        decision = queue.expire(now)
        self._expired(decision, now)
        return decision

    def _expired(self, decision: Decision, now: float) -> None:
        for row in decision.expired:
            self._of(row.vfm).expired += 1
        self._emptied({row.vfm for row in decision.expired}, now)

    def _emptied(self, vfms: Any, now: float) -> None:
        for vfm in vfms:
            if vfm in self._since and not self._queue.waiting(vfm):
                self._backlogged(vfm, self._since.pop(vfm), now)

    def _backlogged(self, vfm: str, since: float, until: float) -> None:
        self._out.backlogged[vfm] = self._out.backlogged.get(vfm, 0.0) + self._within(since, until)

    def _within(self, start: float, end: float) -> float:
        """Seconds of the window from ``start`` to ``end``."""
        first, last = self._out.window
        return max(0.0, min(end, last) - max(start, first))

    def _finish(self) -> None:
        ends, _, start, batch = heapq.heappop(self._running)
        charges = self._queue.complete(batch, ends - start, ends)
        self._measure(batch, start, ends, charges)
        first, last = self._out.window
        for row in batch.rows:
            counts = self._of(row.vfm)
            counts.served += 1
            if first <= row.submitted <= last:
                counts.latencies.append(ends - row.submitted)

    def _measure(self, batch: Batch, start: float, end: float, charges: Any) -> None:
        inside = self._within(start, end)
        if not inside:
            return
        out, part = self._out, inside / (end - start)
        out.busy += inside
        out.batches += part
        out.rows += part * len(batch.rows)
        out.distinct += part * len(batch.shares)
        out.useful += part * self._device.useful(batch)
        out.padding += part * self._device.padding(batch)
        for vfm, seconds in charges.items():
            out.charged[vfm] = out.charged.get(vfm, 0.0) + part * seconds


def _endless(load: Load, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    while True:
        yield from load.lengths.sample(rng, 4096)
