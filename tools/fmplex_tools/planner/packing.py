"""A placement that grows and shrinks replica by replica; what fits where is told for all devices at once."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmplex_tools.planner.estimate import Asked
from fmplex_tools.planner.placement import Placement
from fmplex_tools.planner.problem import FULL, FULLEST, FULLEST_PART, Demand, Problem

Array = NDArray[np.float64]
_NONE = np.inf


@dataclass(frozen=True)
class Piece:
    """One replica: of the ``name``-th vFM of the ``demand``-th demand."""

    demand: int
    name: int


class Packing:
    """See the module. Devices are numbers, in the problem's order."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        count = problem.devices
        self._kind = np.array(problem.kind_of, int)
        self._memory = np.array([problem.kinds[kind].memory for kind in problem.kind_of], float)
        alphas = [[fm.alpha[kind] for kind in problem.kind_of] for fm in problem.fms]
        self._alpha = np.array(alphas, float).reshape(len(problem.fms), count)
        self._taken = np.zeros(count)
        """Bytes."""
        self._work, self._round = np.zeros(count), np.zeros(count)
        """Work, and what a round takes without any: Σ α and spreads."""
        self._ceiling = np.full(count, _NONE)
        self._fms = np.zeros((len(problem.fms), count), int)
        """Replicas of vFMs of each FM."""
        self._fm_work, self._unmerged = np.zeros((len(problem.fms), count)), np.zeros((len(problem.fms), count))
        """Work of each FM: as it should be, and were no two rows merged."""
        self._many = np.zeros(count, int)
        """FMs."""
        self._slots = np.zeros((len(problem.fms), count), int)
        self.on: list[dict[Piece, None]] = [{} for _ in range(count)]
        self._where: dict[Piece, set[int]] = defaultdict(set)
        self._groups: dict[int, list[int]] = defaultdict(list)
        """Group that is kept apart → devices with a member."""
        asked = [
            [(one.work, one.spread, one.ceiling, one.unmerged) for one in demand.asked] for demand in problem.demands
        ]
        terms = np.array(asked, float).reshape(len(problem.demands), len(problem.kinds), 4)
        self._asked_work, self._asked_spread, self._asked_ceiling, self._asked_unmerged = np.moveaxis(terms, -1, 0)

    # ---- what fits ----

    def best(self, piece: Piece, within: NDArray[np.bool_] | None = None) -> int | None:
        """The device to put it on, of those ``within``: one that has its FM, else one that is used, the fullest first.

        Of devices that are not used yet, the cheapest for what it has. Where vFMs are to be spread, the least busy.
        """
        fm = self.problem.demands[piece.demand].fm
        every = np.arange(self.problem.devices)
        for devices in (every,) if self.problem.spread else (np.flatnonzero(self._fms[fm]), every):
            scores = self._scores(piece, devices)
            if within is not None:
                scores = np.where(within[devices], scores, -np.inf)
            if len(scores) and scores[at := int(np.argmax(scores))] > -np.inf:
                return int(devices[at])
        return None

    def _scores(self, piece: Piece, at: NDArray[np.int_]) -> Array:
        """How good it is to put it on these devices; -∞ where it does not fit."""
        demand, problem = self.problem.demands[piece.demand], self.problem
        new = self._fms[demand.fm, at] == 0
        used, taken, kind = self._taken[at] > 0, self._taken[at] + demand.memory, self._kind[at]
        work = self._work[at] + self._asked_work[piece.demand, kind]
        time = self._time(piece, at, work, new)
        good = taken + new * problem.fms[demand.fm].memory <= self._memory[at]
        good &= self._slots[demand.fm, at] + demand.slots <= problem.fms[demand.fm].slots
        good &= (time <= FULL) & (work <= FULLEST)
        for elsewhere in (self._where.get(piece, ()), *(self._groups.get(group, ()) for group in demand.apart)):
            if elsewhere:
                good &= ~np.isin(at, list(elsewhere))
        if len(several := np.flatnonzero(good & (self._many[at] + new > 1))):
            good[several] = self._all_get_through(piece, at[several])
        if problem.spread:
            scores = -(self._fms[demand.fm, at] / problem.fms[demand.fm].slots + self._work[at] + time)
        else:
            full = np.maximum(taken / self._memory[at], np.minimum(time, 1.0))
            rank = full if used.all() else np.where(used, full, -self._cost_of(demand)[kind])
            scores = 4.0 * ~new + 2.0 * used + rank
        made: Array = np.where(good, scores, -np.inf)
        return made

    def _all_get_through(self, piece: Piece, at: NDArray[np.int_]) -> NDArray[np.bool_]:
        """Whether on these devices with it no FM has more to do than its part; of devices with several FMs."""
        fm, kind = self.problem.demands[piece.demand].fm, self._kind[at]
        work, unmerged = self._fm_work[:, at], self._unmerged[:, at]
        work[fm] += self._asked_work[piece.demand, kind]
        unmerged[fm] += self._asked_unmerged[piece.demand, kind]
        many = self._many[at] + (self._fms[fm, at] == 0)
        made: NDArray[np.bool_] = (work <= FULLEST_PART * _parts(unmerged, many)).all(axis=0)
        return made

    def _time(self, piece: Piece, at: NDArray[np.int_], work: Array, new: NDArray[np.bool_]) -> Array:
        """The part of these devices' time that would be taken with this piece on them; more than one does not do."""
        fm, kind = self.problem.demands[piece.demand].fm, self._kind[at]
        rounds = self._round[at] + np.where(new, self._alpha[fm, at], 0.0) + self._asked_spread[piece.demand, kind]
        ceiling = np.minimum(self._ceiling[at], self._asked_ceiling[piece.demand, kind])
        time = work + rounds / np.where(ceiling > 0, ceiling, np.nan)
        return np.where(np.isnan(time), np.inf, time)

    def _cost_of(self, demand: Demand) -> Array:
        """By kind, from 0 to 1: the price of the part of a device that such pieces, and their FM, would take of it."""
        prices = np.array([kind.price for kind in self.problem.kinds])
        parts = []
        for number, kind in enumerate(self.problem.kinds):
            free = kind.memory - self.problem.fms[demand.fm].memory
            memory = demand.memory / free if free > 0 else np.inf
            parts.append(
                max(memory, demand.asked[number].work, demand.slots / self.problem.fms[demand.fm].slots, 1e-12)
            )
        costs = prices * np.array(parts)
        usual = costs[np.isfinite(costs)]
        made: Array = np.minimum(costs / (usual.max() if len(usual) else 1.0), 1.0)
        return made

    # ---- changing it ----

    def add(self, piece: Piece, device: int) -> None:
        """Put it there, whether it fits or not."""
        demand, kind = self.problem.demands[piece.demand], self.problem.kind_of[device]
        if self._fms[demand.fm, device] == 0:
            self._taken[device] += self.problem.fms[demand.fm].memory
            self._round[device] += self._alpha[demand.fm, device]
            self._many[device] += 1
        self._fms[demand.fm, device] += 1
        self._fm_work[demand.fm, device] += demand.asked[kind].work
        self._unmerged[demand.fm, device] += demand.asked[kind].unmerged
        self._taken[device] += demand.memory
        self._slots[demand.fm, device] += demand.slots
        self._work[device] += demand.asked[kind].work
        self._round[device] += demand.asked[kind].spread
        self._ceiling[device] = min(self._ceiling[device], demand.asked[kind].ceiling)
        self.on[device][piece] = None
        self._where[piece].add(device)
        for group in demand.apart:
            self._groups[group].append(device)

    def remove(self, piece: Piece, device: int) -> None:
        """Take it from there."""
        demand, kind = self.problem.demands[piece.demand], self.problem.kind_of[device]
        del self.on[device][piece]
        self._where[piece].discard(device)
        self._fms[demand.fm, device] -= 1
        self._fm_work[demand.fm, device] -= demand.asked[kind].work
        self._unmerged[demand.fm, device] -= demand.asked[kind].unmerged
        if self._fms[demand.fm, device] == 0:
            self._taken[device] -= self.problem.fms[demand.fm].memory
            self._round[device] -= self._alpha[demand.fm, device]
            self._many[device] -= 1
            self._fm_work[demand.fm, device] = self._unmerged[demand.fm, device] = 0.0
        self._taken[device] -= demand.memory
        self._slots[demand.fm, device] -= demand.slots
        self._work[device] -= demand.asked[kind].work
        self._round[device] -= demand.asked[kind].spread
        for group in demand.apart:
            self._groups[group].remove(device)
        if not self.on[device]:
            self._work[device] = self._round[device] = self._taken[device] = 0.0
        if demand.asked[kind].ceiling <= self._ceiling[device]:
            left = {other.demand for other in self.on[device]}
            self._ceiling[device] = min((self.problem.demands[d].asked[kind].ceiling for d in left), default=_NONE)

    def place(self, pieces: Iterable[Piece]) -> list[Piece]:
        """Each where it is best; those that fit nowhere are returned."""
        return [left for _, alike in groupby(pieces, attrgetter("demand")) for left in self._place_alike(list(alike))]

    def _place_alike(self, pieces: list[Piece]) -> Iterator[Piece]:
        """Those of one demand. Where one goes, others follow as long as they fit: nowhere is it fuller."""
        demand = self.problem.demands[pieces[0].demand]
        follow = demand.replicas == 1 and not demand.apart and not self.problem.spread
        while pieces:
            device = self.best(pieces[0])
            if device is None:
                count = len(pieces) if follow else 1
                yield from pieces[:count]
            else:
                self.add(pieces[0], device)
                count = 1 + (self._room(demand, device) if follow else 0)
                for piece in pieces[1:count]:
                    self.add(piece, device)
            pieces = pieces[count:]

    def _room(self, demand: Demand, device: int) -> int:
        """How many more of it fit on a device that has its FM."""
        fm, own = self.problem.fms[demand.fm], demand.asked[self.problem.kind_of[device]]
        time = self._work[device] + self._round[device] / self._ceiling[device]
        limits = [
            (self._memory[device] - self._taken[device], demand.memory),
            (fm.slots - self._slots[demand.fm, device], demand.slots),
            (FULLEST - self._work[device], own.work),
            (FULL - time, own.work + own.spread / self._ceiling[device]),
        ]
        limits += self._room_beside(demand.fm, own, device)
        return min((max(0, int(free // each)) for free, each in limits if each > 0), default=sys.maxsize)

    def _room_beside(self, fm: int, own: Asked, device: int) -> Iterator[tuple[float, float]]:
        """Until an FM would have more to do than its part: what is free, and what each piece of ``fm`` takes of it."""
        many, unmerged = self._many[device], self._unmerged[:, device]
        if many < 2:
            return
        part = _parts(unmerged, many)
        yield FULLEST_PART * part[fm] - self._fm_work[fm, device], own.work
        for other in np.flatnonzero(self._fms[:, device]):
            if other != fm and (needed := self._fm_work[other, device] / FULLEST_PART) > 1 / many:
                yield part[other] - needed, own.unmerged

    # ---- looking ----

    @property
    def used(self) -> NDArray[np.bool_]:
        """Devices with something on them."""
        return self._taken > 0

    def fullness(self, device: int) -> dict[str, float]:
        """Part that is taken of its memory, of its time and of the slots of the FM that has most; at most 1 if good."""
        slots = max(
            (int(self._slots[number, device]) / fm.slots for number, fm in enumerate(self.problem.fms)), default=0.0
        )
        time = self._work[device] + (self._round[device] / self._ceiling[device] if self.on[device] else 0.0)
        if self._ceiling[device] <= 0 or np.isnan(time):
            time = np.inf
        if self._many[device] > 1:
            part = _parts(self._unmerged[:, device], self._many[device])
            time = max(time, float((self._fm_work[:, device] / part).max()) / FULLEST_PART)
        time = max(time, self._work[device] / FULLEST)
        return {"memory": float(self._taken[device] / self._memory[device]), "time": float(time), "slots": slots}

    def vfms_on(self, device: int) -> int:
        """How many, a bundle's each for itself."""
        return sum(self.problem.demands[piece.demand].size for piece in self.on[device])

    def round_of(self, device: int) -> float:
        """Seconds that a round should take there."""
        return float(self._round[device] / (1 - self._work[device]))

    def devices_of(self, piece: Piece) -> set[int]:
        """Where it is: a device for each replica."""
        return set(self._where.get(piece, ()))

    def placement(self) -> Placement:
        """vFMs all of whose replicas have a place."""
        on: dict[str, tuple[int, ...]] = {}
        for number, demand in enumerate(self.problem.demands):
            for place, name in enumerate(demand.names):
                devices = self._where.get(Piece(number, place), set())
                if len(devices) == demand.replicas:
                    on[name] = tuple(sorted(devices))
        return Placement(on)


def _parts(unmerged: Array, many: Any) -> Array:
    """What each FM has of a device with so ``many``: an even part, or what others leave though they merge no rows."""
    made: Array = np.maximum(1 / many, 1 - (unmerged.sum(axis=0) - unmerged))
    return made


def pieces_of(problem: Problem) -> list[Piece]:
    """All of them; a vFM of several replicas several times."""
    return [
        Piece(number, place)
        for number, demand in enumerate(problem.demands)
        for place in range(len(demand.names))
        for _ in range(demand.replicas)
    ]
