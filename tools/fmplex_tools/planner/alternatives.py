"""The same fleet without sharing: a private copy of the FM for every vFM, and each in a fence of its own.

Private copies share a device freely: each adds its own α to a round, and nothing is merged. In spatial partitions a
device is divided evenly, so that of N copies each computes N times as slowly. Both are filled device by device, with
what must be quick first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from fmplex_tools.planner.estimate import ROUNDS
from fmplex_tools.planner.problem import FULL, FULLEST, Demand, Problem
from fmplex_tools.planner.search import largest

How = Literal["private", "spatial"]


@dataclass(frozen=True)
class Without:
    """What a fleet comes to without sharing."""

    hosted: int
    """vFMs that the devices there are have room for."""
    devices: dict[str, int | None]
    """Kind → devices of it that all vFMs would take; None: some do not run there, however many there are."""


def without(problem: Problem, how: How) -> Without:
    """Of ``problem``."""
    needed = {kind.name: _needed(problem, how, number) for number, kind in enumerate(problem.kinds)}
    return Without(_hosted(problem, how), needed)


@dataclass
class _Device:
    """One that is being filled."""

    memory: float
    kind: int
    how: How
    work: float = 0.0
    rounds: float = 0.0
    ceiling: float = math.inf
    count: int = 0
    most: float = math.inf
    """Copies that it may have for all of them to be quick enough, in partitions."""

    def take(self, demand: Demand, fm_memory: int) -> bool:
        """Whether a copy more fits; then it is there."""
        memory = self.memory - fm_memory - demand.memory
        alone = demand.alone[self.kind]
        work, alpha = alone.work, alone.alpha + alone.spread
        ceiling = min(self.ceiling, alone.ceiling)
        if memory < 0 or ceiling <= 0 or math.isnan(alpha):
            return False
        most = self.most
        if self.how == "spatial":
            most = min(most, _partitions(demand, self.kind))
            if self.count + 1 > most:
                return False
        elif self.work + work + (self.rounds + alpha) / ceiling > FULL or self.work + work > FULLEST:
            return False
        self.memory, self.work, self.rounds, self.ceiling = memory, self.work + work, self.rounds + alpha, ceiling
        self.count, self.most = self.count + 1, most
        return True


def _partitions(demand: Demand, kind: int) -> int:
    """Most even parts of a device each of which answers ``demand`` in time, computing as many times as slowly."""
    alone = demand.alone[kind]
    own = demand.target - ROUNDS * alone.ceiling

    def good(parts: int) -> bool:
        left = 1 - parts * alone.work
        round_ = parts * (alone.alpha + parts * alone.spread) / left if left > 0 else math.inf
        return left >= 1 - FULLEST and ROUNDS * round_ + parts * own <= demand.target * FULL

    return 0 if math.isnan(alone.alpha) else largest(good)


def _in_order(problem: Problem) -> list[Demand]:
    each = [vfm for demand in problem.demands for vfm in demand.vfms or (demand,)]
    return sorted(each, key=lambda demand: (demand.strict, -demand.memory))


def _needed(problem: Problem, how: How, kind: int) -> int | None:
    """Devices of one kind for all of them."""
    count, device = 0, None
    for demand in _in_order(problem):
        memory = problem.fms[demand.fm].memory
        for _ in range(demand.pieces):
            if device is None or not device.take(demand, memory):
                device, count = _Device(problem.kinds[kind].memory, kind, how), count + 1
                if not device.take(demand, memory):
                    return None
    return count


def _hosted(problem: Problem, how: How) -> int:
    """vFMs on the devices there are, those with the least replicas first."""
    devices = _devices(problem, how)
    device, hosted = next(devices, None), 0
    for demand in sorted(_in_order(problem), key=lambda demand: demand.replicas):
        memory = problem.fms[demand.fm].memory
        for _ in demand.names:
            placed = 0
            while device is not None and placed < demand.replicas:
                if device.take(demand, memory):
                    placed += 1
                elif device.count == 0:  # never, on this kind
                    break
                else:
                    device = next(devices, None)
            hosted += placed == demand.replicas
    return hosted


def _devices(problem: Problem, how: How) -> Iterator[_Device]:
    for kind in problem.kind_of:
        yield _Device(problem.kinds[kind].memory, kind, how)
