"""A fleet in numbers: what each vFM asks of each kind of device, by `fmplex_tools.planner.estimate`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

from fmplex_backend.errors import InvalidInput
from fmplex_tools.planner.estimate import NEVER, ROUNDS, Asked, asked, asked_alone, launches
from fmplex_tools.planner.fleet_file import Fleet, VfmSpec

FULL = 1.0 + 1e-9
"""Up to which a part counts as not more than one."""
FULLEST = 0.9
"""Most work of a device: nearer to one the estimate is worth nothing."""
FULLEST_PART = 0.8
"""Most work of an FM beside others, of its part of a device (`fmplex_tools.planner.estimate`)."""


@dataclass(frozen=True)
class Kind:
    """Devices that are alike."""

    name: str
    count: int
    memory: int
    """Bytes that may be used."""
    price: float


@dataclass(frozen=True)
class Shared:
    """A physical FM."""

    name: str
    memory: int
    slots: int
    alpha: tuple[float, ...]
    """By kind: seconds of a round; NaN where it does not run."""
    lengths: tuple[int, int]
    """Tokens of its vFMs' shortest and longest rows."""


@dataclass(frozen=True)
class Traffic:
    """What comes in for one vFM."""

    rate: float
    """Rows a second."""
    burst: int
    lengths: tuple[tuple[int, float], ...]
    weight: float


@dataclass(frozen=True)
class Demand:
    """vFMs that ask for the same; each has ``replicas`` replicas, all alike.

    Or the vFMs of a bundle, as one that goes where they go, under the bundle's name.
    """

    names: tuple[str, ...]
    fm: int
    memory: int
    """Bytes of a replica, apart from its FM's."""
    slots: int
    replicas: int
    asked: tuple[Asked, ...]
    """By kind: what a replica asks."""
    apart: frozenset[int]
    """Numbers of the groups whose members share no device."""
    target: float
    """Seconds within which 99 of 100 rows are answered."""
    alone: tuple[Asked, ...]
    """By kind: what a private copy would; of a bundle nothing, its vFMs have copies of their own."""
    traffic: Traffic
    """Of a bundle, that of its first vFM."""
    vfms: tuple[Demand, ...] = ()
    """Of a bundle: what each of its vFMs asks for."""
    bundles: tuple[str, ...] = ()
    """Of a bundle: its name, and those of others that have vFMs in common with it."""

    @property
    def strict(self) -> float:
        """Seconds that a round may take, on the kind where it may take longest."""
        return max(asked.ceiling for asked in self.asked)

    @property
    def pieces(self) -> int:
        """Replicas of all of them."""
        return len(self.names) * self.replicas

    @property
    def size(self) -> int:
        """vFMs that each of its names stands for."""
        return len(self.vfms) or 1

    def each(self, place: int) -> Iterator[tuple[str, Demand]]:
        """The vFMs that its ``place``-th name stands for, and what each asks for."""
        yield from ((one.names[0], one) for one in self.vfms) if self.vfms else ((self.names[place], self),)

    def all_of(self, name: str) -> tuple[str, ...]:
        """What goes where ``name`` goes: for a bundle its vFMs and the bundles over them, else the vFM itself."""
        return (*self.bundles, *(one.names[0] for one in self.vfms)) if self.vfms else (name,)

    def with_another_replica(self) -> Demand:
        """Each of which asks for that much less."""
        part = self.replicas / (self.replicas + 1)
        asked, alone = (tuple(one.times(part) for one in own) for own in (self.asked, self.alone))
        vfms = tuple(vfm.with_another_replica() for vfm in self.vfms)
        return replace(self, replicas=self.replicas + 1, asked=asked, alone=alone, vfms=vfms)


@dataclass(frozen=True)
class Problem:
    """What is to be placed where."""

    kinds: tuple[Kind, ...]
    fms: tuple[Shared, ...]
    demands: tuple[Demand, ...]
    spread: bool = False
    """Whether all devices are to be used, and not as few as will do."""

    @property
    def devices(self) -> int:
        """All that there are."""
        return sum(kind.count for kind in self.kinds)

    @property
    def vfms(self) -> int:
        """To be placed."""
        return self.count(name for demand in self.demands for name in demand.names)

    def count(self, names: Iterable[str]) -> int:
        """vFMs that these names of demands stand for."""
        return sum(self._bundled.get(name, 1) for name in names)

    @cached_property
    def _bundled(self) -> dict[str, int]:
        return {name: demand.size for demand in self.demands if demand.vfms for name in demand.names}

    @cached_property
    def kind_of(self) -> tuple[int, ...]:
        """Of each device, in order."""
        return tuple(number for number, kind in enumerate(self.kinds) for _ in range(kind.count))

    @cached_property
    def device_names(self) -> tuple[str, ...]:
        """``gpu-0``, ``gpu-1`` …"""
        return tuple(f"{kind.name}-{number}" for kind in self.kinds for number in range(kind.count))

    @cached_property
    def hopeless(self) -> frozenset[int]:
        """Demands of which not even an empty device holds a replica."""
        return frozenset(number for number, one in enumerate(self.demands) if self.why_never(one) is not None)

    def with_devices(self, kind: int, count: int) -> Problem:
        """The same with so many devices of a kind."""
        kinds = [replace(own, count=count) if number == kind else own for number, own in enumerate(self.kinds)]
        return replace(self, kinds=tuple(kinds))

    def why_never(self, demand: Demand) -> str | None:
        """Why not even an empty device holds a replica of ``demand``; None where one does."""
        fm = self.fms[demand.fm]
        reasons = []
        for number, kind in enumerate(self.kinds):
            own = demand.asked[number]
            alpha, ceiling, work = fm.alpha[number] + own.spread, own.ceiling, own.work
            if math.isnan(alpha):
                reasons.append(f"{fm.name} has no cost for {kind.name}")
            elif fm.memory + demand.memory > kind.memory:
                needed = f"{(fm.memory + demand.memory) / 1e6:,.0f} MB"
                reasons.append(f"{kind.name} has {kind.memory / 1e6:,.0f} MB to use, it needs {needed}")
            elif ceiling <= 0 or work + alpha / ceiling > FULL or work > FULLEST:
                least = "its rate is more than the device can do"
                if work < FULLEST:
                    more = ROUNDS * (alpha / (1 - work) - ceiling)
                    least = f"its p99 would have to be {more * 1e3:,.0f} ms longer"
                reasons.append(f"on {kind.name} {least}")
            else:
                return None
        return "; ".join(dict.fromkeys(reasons))


def problem_of(fleet: Fleet) -> Problem:
    """Numbers for ``fleet``. vFMs that are alike are one demand; hot ones are given more replicas than they ask for."""
    kinds = tuple(
        Kind(name, device.count, int(device.memory * (1 - fleet.headroom)), device.price)
        for name, device in fleet.devices.items()
    )
    fm_names = list(fleet.fms)
    lengths: dict[str, set[int]] = {name: set() for name in fm_names}
    for vfm in fleet.vfms.values():
        lengths[vfm.fm] |= vfm.lengths.keys()
    fms = []
    for name, fm in fleet.fms.items():
        costs = [fm.cost[kind.name].model() if kind.name in fm.cost else None for kind in kinds]
        alphas = (math.nan if cost is None else cost.alpha * launches(lengths[name], cost) for cost in costs)
        ends = min(lengths[name], default=1), max(lengths[name], default=1)
        fms.append(Shared(name, int(fm.memory), fm.slots, tuple(alphas), ends))
    bare = Problem(kinds, tuple(fms), (), fleet.spread)
    together = fleet.together()
    bundled = {vfm for _, vfms in together for vfm in vfms}
    demands = []
    for name, vfm in fleet.vfms.items():
        if vfm.count > 1 and any(name in group for group in fleet.apart):
            raise InvalidInput(f"apart: {name!r} is {vfm.count} vFMs; name single ones")
        if name not in bundled:
            demands.append(_with_replicas(bare, vfm.replicas, partial(_demand, bare, fleet, name)))
    for bundles, vfms in together:
        least = max(fleet.vfms[vfm].replicas for vfm in vfms)
        demands.append(_with_replicas(bare, least, partial(_bundle, bare, fleet, tuple(bundles), vfms)))
    return replace(bare, demands=tuple(_merged(demands)))


def _with_replicas(bare: Problem, least: int, demand_with: Callable[[int], Demand]) -> Demand:
    """With the fewest replicas, from what is asked for on, each of which fits on a device of its own."""
    for replicas in _more(least, max(least, bare.devices)):
        if bare.why_never(demand := demand_with(replicas)) is None:
            return demand
    return demand_with(least)  # no number of replicas helps: told of as it was asked for


def _demand(bare: Problem, fleet: Fleet, name: str, replicas: int) -> Demand:
    vfm = fleet.vfms[name]
    fm, kinds = [own.name for own in bare.fms].index(vfm.fm), range(len(bare.kinds))
    return Demand(
        names=(name,) if vfm.count == 1 else vfm.numbered(name),
        fm=fm,
        memory=int(vfm.memory),
        slots=int(vfm.adapter),
        replicas=replicas,
        asked=tuple(_asked(fleet, bare, vfm, fm, kind, replicas, alone=False) for kind in kinds),
        apart=frozenset(number for number, group in enumerate(fleet.apart) if name in group),
        target=vfm.p99_ms / 1e3,
        alone=tuple(_asked(fleet, bare, vfm, fm, kind, replicas, alone=True) for kind in kinds),
        traffic=Traffic(vfm.rate, vfm.burst, tuple(sorted(vfm.lengths.items())), vfm.weight),
    )


def _bundle(bare: Problem, fleet: Fleet, bundles: tuple[str, ...], vfms: Sequence[str], replicas: int) -> Demand:
    """What ``vfms`` ask for together. Rows that a bundle's vFMs could share count for each of them."""
    each = tuple(_demand(bare, fleet, vfm, replicas) for vfm in vfms)
    return Demand(
        names=bundles[:1],
        fm=each[0].fm,
        memory=sum(one.memory for one in each),
        slots=sum(one.slots for one in each),
        replicas=replicas,
        asked=tuple(Asked.of_all(asked) for asked in zip(*(one.asked for one in each), strict=True)),
        apart=frozenset().union(*(one.apart for one in each)),
        target=min(one.target for one in each),
        alone=(),
        traffic=each[0].traffic,
        vfms=each,
        bundles=bundles,
    )


def _asked(fleet: Fleet, bare: Problem, vfm: VfmSpec, fm: int, kind: int, replicas: int, *, alone: bool) -> Asked:
    spec, name = fleet.fms[vfm.fm], bare.kinds[kind].name
    if name not in spec.cost:
        return NEVER
    cost = spec.cost[name].model()
    if alone:
        return asked_alone(vfm, cost, spec.max_batch_rows, replicas)
    shared = bare.fms[fm]
    return asked(vfm, cost, shared.alpha[kind], shared.lengths, spec.max_batch_rows, replicas)


def _more(first: int, last: int) -> Iterator[int]:
    """``first`` and a bit more each time, to ``last``."""
    count = first
    while count < last:
        yield count
        count = max(count + 1, count * 5 // 4)
    yield last


def _merged(demands: Sequence[Demand]) -> Iterator[Demand]:
    """Those that differ in nothing but names as one; which of them are kept apart is a difference."""
    alike: dict[Demand, list[str]] = {}
    for demand in demands:
        key = replace(demand, names=demand.names if demand.apart else ())
        alike.setdefault(key, []).extend(demand.names)
    for key, names in alike.items():
        yield replace(key, names=tuple(names))
