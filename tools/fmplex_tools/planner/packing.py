"""A placement that grows and shrinks replica by replica; what fits where is told for all devices at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fmplex_tools.planner.placement import Placement
from fmplex_tools.planner.problem import FULL, FULLEST, Problem

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
        self._slots = np.zeros((len(problem.fms), count), int)
        self.on: list[dict[Piece, None]] = [{} for _ in range(count)]
        self._where: dict[Piece, set[int]] = defaultdict(set)
        self._groups: dict[int, list[int]] = defaultdict(list)
        """Group that is kept apart → devices with a member."""
        asked = [[(one.work, one.spread, one.ceiling) for one in demand.asked] for demand in problem.demands]
        terms = np.array(asked, float).reshape(len(problem.demands), len(problem.kinds), 3)
        self._asked_work, self._asked_spread, self._asked_ceiling = np.moveaxis(terms, -1, 0)

    # ---- what fits ----

    def _fits(self, piece: Piece, time: Array) -> NDArray[np.bool_]:
        """The devices that would still hold all that they have to, and this one; an FM is brought where it is not."""
        demand = self.problem.demands[piece.demand]
        fm = self.problem.fms[demand.fm]
        new = self._fms[demand.fm] == 0
        good: NDArray[np.bool_] = self._taken + demand.memory + new * fm.memory <= self._memory
        good &= self._slots[demand.fm] + demand.slots <= fm.slots
        if self.problem.most_fms is not None:
            good &= np.count_nonzero(self._fms, axis=0) + new <= self.problem.most_fms
        good &= time <= FULL
        good &= self._work + self._asked_work[piece.demand][self._kind] <= FULLEST
        for taken in (self._where.get(piece, ()), *(self._groups.get(group, ()) for group in demand.apart)):
            for device in taken:
                good[device] = False
        return good

    def _time(self, piece: Piece) -> Array:
        """The part of every device's time that would be taken with this piece on it; more than one does not do."""
        demand = self.problem.demands[piece.demand]
        new = self._fms[demand.fm] == 0
        work = self._work + self._asked_work[piece.demand][self._kind]
        rounds = self._round + np.where(new, self._alpha[demand.fm], 0.0)
        rounds = rounds + self._asked_spread[piece.demand][self._kind]
        ceiling = np.minimum(self._ceiling, self._asked_ceiling[piece.demand][self._kind])
        with np.errstate(divide="ignore", invalid="ignore"):
            time = np.where(ceiling > 0, work + rounds / ceiling, np.inf)
        return np.where(np.isnan(time), np.inf, time)

    def best(self, piece: Piece, within: NDArray[np.bool_] | None = None) -> int | None:
        """The device to put it on, of those ``within``: one that has its FM, else one that is used, the fullest first.

        Of devices that are not used yet, the cheapest for what it has. Where vFMs are to be spread, the least busy.
        """
        time = self._time(piece)
        good = self._fits(piece, time)
        if within is not None:
            good &= within
        if not good.any():
            return None
        demand = self.problem.demands[piece.demand]
        if self.problem.spread:
            load = self._fms[demand.fm] / self.problem.fms[demand.fm].slots + self._work + time
            return int(np.argmin(np.where(good, load, np.inf)))
        resident = self._fms[demand.fm] > 0
        memory = (self._taken + demand.memory) / self._memory
        full = np.maximum(memory, np.minimum(time, 1.0))
        score = 4.0 * resident + 2.0 * self.used + np.where(self.used, full, -self._cost_of(piece))
        return int(np.argmax(np.where(good, score, -np.inf)))

    def _cost_of(self, piece: Piece) -> Array:
        """Between 0 and 1: the price of the part of each device that such pieces, and their FM, would take of it."""
        demand = self.problem.demands[piece.demand]
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
        made: Array = np.minimum(costs / (usual.max() if len(usual) else 1.0), 1.0)[self._kind]
        return made

    # ---- changing it ----

    def add(self, piece: Piece, device: int) -> None:
        """Put it there, whether it fits or not."""
        demand, kind = self.problem.demands[piece.demand], self.problem.kind_of[device]
        if self._fms[demand.fm, device] == 0:
            self._taken[device] += self.problem.fms[demand.fm].memory
            self._round[device] += self._alpha[demand.fm, device]
        self._fms[demand.fm, device] += 1
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
        if self._fms[demand.fm, device] == 0:
            self._taken[device] -= self.problem.fms[demand.fm].memory
            self._round[device] -= self._alpha[demand.fm, device]
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
        left = []
        for piece in pieces:
            if (device := self.best(piece)) is None:
                left.append(piece)
            else:
                self.add(piece, device)
        return left

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
        time = max(time, self._work[device] / FULLEST)
        return {"memory": float(self._taken[device] / self._memory[device]), "time": float(time), "slots": slots}

    def round_of(self, device: int) -> float:
        """Seconds that a round should take there."""
        return float(self._round[device] / (1 - self._work[device]))

    def fms_of(self, device: int) -> dict[int, int]:
        """The FMs that are there, and replicas of how many vFMs of each."""
        return {int(fm): int(self._fms[fm, device]) for fm in np.flatnonzero(self._fms[:, device])}

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


def pieces_of(problem: Problem) -> list[Piece]:
    """All of them; a vFM of several replicas several times."""
    return [
        Piece(number, place)
        for number, demand in enumerate(problem.demands)
        for place in range(len(demand.names))
        for _ in range(demand.replicas)
    ]
