"""How many replicas vFMs are to have, and which physical FMs sleep, from what comes in. Pure: time is an argument.

1. A replica carries its part of what the fleet file says: ``rate / replicas`` rows a second.
2. Where more than that comes in for `UP` seconds, or p99 is beyond its target for as long while half of it comes in, a
   vFM gets as many replicas as carry what comes in with `ROOM` to spare, up to its ``most_replicas``.
3. Where one fewer would carry what comes in with `ROOM` to spare for `DOWN` seconds, it has one fewer, down to its
   ``replicas``.
4. A physical FM sleeps where none of its vFMs was asked for ``sleep_after`` seconds; it is on no device then. It wakes
   when somebody waits at the door for one of them.
5. What has no room is not forced: a vFM that cannot have all the replicas it would get has those that fit (`fitted`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from fmplex_tools.planner.fleet_file import Fleet, VfmSpec
from fmplex_tools.planner.placement import PlanFile

UP = 8.0
DOWN = 60.0
ROOM = 0.8
"""Part of what replicas carry that is used, where their number is changed."""


@dataclass(frozen=True)
class Load:
    """What has come in for a vFM lately."""

    rows: float
    """A second, whatever became of them."""
    p99: float | None = None
    """Seconds; None where no request was answered."""

    def __add__(self, other: Load) -> Load:
        """Of two replicas; the slower one's p99."""
        slow = [p99 for p99 in (self.p99, other.p99) if p99 is not None]
        return Load(self.rows + other.rows, max(slow, default=None))


@dataclass(frozen=True)
class Wish:
    """What the load asks for."""

    replicas: Mapping[str, int] = field(default_factory=dict)
    """vFM → replicas, of those that have more than their least."""
    asleep: frozenset[str] = frozenset()
    """Physical FMs."""


class Elastic:
    """See the module. It remembers since when vFMs have had too much or too little, and when FMs were asked last."""

    def __init__(self, fleet: Fleet, now: float) -> None:
        """FMs count as asked at ``now``, of which nothing was heard yet."""
        self._begun = now
        self._vfms = [(name, spec) for name, spec in fleet.names() if spec.most_replicas is not None]
        self._rests = {name: spec.sleep_after for name, spec in fleet.fms.items() if spec.sleep_after is not None}
        self._fm_of = fleet.fm_of() if self._rests else {}
        self._over: dict[str, float] = {}
        self._under: dict[str, float] = {}
        self._asked: dict[str, float] = {}

    @property
    def idle(self) -> bool:
        """Whether nothing of the fleet follows its load."""
        return not self._vfms and not self._rests

    def step(
        self,
        wish: Wish,
        loads: Mapping[str, Load],
        waiting: Collection[str],
        now: float,
        moving: Collection[str] = (),
    ) -> Wish:
        """What is to be, where ``wish`` is what was until ``now``.

        ``loads``: of vFMs that something came in for; ``waiting``: vFMs that requests wait for at the door; ``moving``:
        those that are not served yet as they are to be: before that nobody can ask for them.
        """
        replicas = {}
        for name, spec in self._vfms:
            have = min(max(spec.replicas, wish.replicas.get(name, 0)), spec.most_replicas or 0)
            count = self._replicas(name, spec, have, loads.get(name, Load(0.0)), now)
            if count > spec.replicas:
                replicas[name] = count
        return Wish(replicas, self._asleep(wish.asleep, {*loads, *moving}, waiting, now))

    def _replicas(self, name: str, spec: VfmSpec, have: int, load: Load, now: float) -> int:
        each, most = spec.rate / spec.replicas, spec.most_replicas or spec.replicas
        late = load.p99 is not None and load.p99 > spec.p99_ms / 1e3 and load.rows > have * each / 2
        over = have < most and (load.rows > have * each or late)
        under = have > spec.replicas and not late and load.rows < (have - 1) * each * ROOM
        if _lasts(self._over, name, over, UP, now):
            return min(most, max(have + 1, math.ceil(load.rows / (each * ROOM))))
        return have - 1 if _lasts(self._under, name, under, DOWN, now) else have

    def _asleep(
        self, asleep: frozenset[str], awake: Collection[str], waiting: Collection[str], now: float
    ) -> frozenset[str]:
        if not self._rests:
            return frozenset()
        called = {self._fm_of.get(vfm, "") for vfm in waiting}
        for fm in called | {self._fm_of.get(vfm, "") for vfm in awake}:
            self._asked[fm] = now
        return frozenset(
            fm
            for fm, seconds in self._rests.items()
            if (fm not in called if fm in asleep else now - self._asked.get(fm, self._begun) > seconds)
        )


def _lasts(since: dict[str, float], name: str, holds: bool, seconds: float, now: float) -> bool:
    """Whether it has held for so long; then it begins anew."""
    if not holds:
        since.pop(name, None)
        return False
    if now - since.setdefault(name, now) < seconds:
        return False
    del since[name]
    return True


def scaled(fleet: Fleet, wish: Wish) -> Fleet:
    """The fleet file as it would be for ``wish``: more replicas for as much more that comes in; no FM that sleeps."""
    vfms: dict[str, VfmSpec] = {}
    for name, spec in fleet.vfms.items():
        if spec.fm in wish.asleep:
            continue
        names = (name,) if spec.count == 1 else spec.numbered(name)
        if not any(one in wish.replicas for one in names):
            vfms[name] = spec
            continue
        for one in names:
            count = max(spec.replicas, wish.replicas.get(one, 0))
            rate = spec.rate / spec.replicas * count
            vfms[one] = spec.model_copy(update={"count": 1, "replicas": count, "rate": rate})
    return fleet.with_vfms(vfms)


def fitted(fleet: Fleet, wish: Wish, place: Callable[[Fleet], PlanFile]) -> tuple[PlanFile, Wish]:
    """The plan for as much of ``wish`` as there is room for, and that part of it.

    Only what load asks for is given up, never a replica that the fleet file asks for.
    """
    least = dict(fleet.names())
    wish = _within(fleet, least, wish)
    plan = place(scaled(fleet, wish))
    if not plan.missing or not wish.replicas:
        return plan, wish
    hopeless = set(place(scaled(fleet, Wish(asleep=wish.asleep))).missing)
    while wish.replicas and (short := set(plan.missing) - hopeless):
        given_up = short & wish.replicas.keys() or wish.replicas.keys()
        fewer = {name: count - (name in given_up) for name, count in wish.replicas.items()}
        wish = Wish({name: count for name, count in fewer.items() if count > least[name].replicas}, wish.asleep)
        plan = place(scaled(fleet, wish))
    return plan, wish


def _within(fleet: Fleet, specs: Mapping[str, VfmSpec], wish: Wish) -> Wish:
    """What of ``wish`` the fleet file still allows."""
    replicas = {}
    for name, count in wish.replicas.items():
        if (spec := specs.get(name)) is not None and min(count, spec.most_replicas or 0) > spec.replicas:
            replicas[name] = min(count, spec.most_replicas or 0)
    asleep = {name for name in wish.asleep if name in fleet.fms and fleet.fms[name].sleep_after is not None}
    return Wish(replicas, frozenset(asleep))
