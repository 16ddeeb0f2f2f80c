"""Private copies on one device, in virtual time: how many of them are quick enough?

Each copy answers its own task's rows, up to `world.MOST_ROWS` that wait at once in one batch. On a device that is
shared freely batches run whole, one after the other, the longest waiting first; in spatial partitions each copy has
1/N of the device for itself. Both have no price for switching, which real ones do.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fmplex_tools.bench.cluster.world import MOST_ROWS, OnDevice, World
from fmplex_tools.planner.search import largest
from fmplex_tools.planner.verify import LONGEST, ROWS, met

How = Literal["shared", "partitions"]
PARTITIONS_SEEN = 48
"""Of the partitions of a device, which are all alike, no more are simulated."""
CLOSE = 0.02
"""Part by which what is found may be less than the most."""


@dataclass(frozen=True)
class Copies:
    """How many a device hosts, and why no more."""

    count: int
    limit: Literal["memory", "p99"]


def most_copies(world: World, how: How, rate: float, p99: float, seed: int = 0) -> Copies:
    """The most copies, FMs by turns, of which 99 of 100 rows take at most ``p99`` seconds.

    Or what their FM's target is (`OnDevice.target`); at ``rate`` rows a second of each task.
    """
    room = _room(world)
    count = largest(lambda count: _good(world, how, count, rate, p99, seed), room, CLOSE)
    return Copies(count, "memory" if count == room else "p99")


def _room(world: World) -> int:
    """Copies that memory holds."""
    count, left = 0, world.memory
    while (left := left - world.fms[count % len(world.fms)].copy) >= 0:
        count += 1
    return count


def _good(world: World, how: How, count: int, rate: float, p99: float, seed: int) -> bool:
    late: dict[str, int] = defaultdict(int)
    rows: dict[str, int] = defaultdict(int)
    for fm, latencies in _simulated(world, how, count, rate, seed):
        late[fm.name] += sum(latency > fm.target(p99) for latency in latencies)
        rows[fm.name] += len(latencies)
    return all(met(late[fm], rows[fm]) for fm in rows)


def _simulated(world: World, how: How, count: int, rate: float, seed: int) -> list[tuple[OnDevice, list[float]]]:
    """Each copy, and how long its rows took."""
    chance = np.random.default_rng(seed)
    seen = count if how == "shared" else min(count, max(PARTITIONS_SEEN, len(world.fms)))
    slowed = 1 if how == "shared" else count
    span = min(LONGEST, ROWS / (seen * rate))
    copies = [_Copy(world.fms[number % len(world.fms)], rate, span, chance) for number in range(seen)]
    ready = [(copy.times[0], number) for number, copy in enumerate(copies) if len(copy.times)]
    heapq.heapify(ready)
    free: dict[int, float] = defaultdict(float)
    while ready:
        at, number = heapq.heappop(ready)
        copy, device = copies[number], 0 if how == "shared" else number
        lead = copy.fm.cost.alpha if world.overlap else 0.0
        begin = max(at + lead, free[device])
        work = copy.take(begin)
        free[device] = end = begin + slowed * (work if world.overlap else copy.fm.cost.alpha + work)
        copy.answered(end)
        if copy.taken < len(copy.times):
            heapq.heappush(ready, (max(end, copy.times[copy.taken]), number))
    return [(copy.fm, copy.latencies) for copy in copies]


class _Copy:
    """One task's rows, in the order in which they come."""

    def __init__(self, fm: OnDevice, rate: float, span: float, chance: np.random.Generator) -> None:
        self.fm = fm
        self.times = np.sort(chance.uniform(0, span, chance.poisson(rate * span))).tolist()
        lengths, often = (np.array(part, float) for part in zip(*fm.lengths.items(), strict=True))
        self._sizes = chance.choice(lengths, len(self.times), p=often / often.sum()).astype(int).tolist()
        self.taken = self._from = 0
        self.latencies: list[float] = []

    def take(self, now: float) -> float:
        """Put what waits into a batch; seconds of its rows' work."""
        self._from = self.taken
        most = min(len(self.times), self._from + MOST_ROWS)
        while self.taken < most and self.times[self.taken] <= now:
            self.taken += 1
        rows = self.taken - self._from
        return rows * self.fm.cost.work(max(self._sizes[self._from : self.taken]))

    def answered(self, now: float) -> None:
        """What was taken last."""
        self.latencies += [now - time for time in self.times[self._from : self.taken]]
