"""Checking a placement against the real queue, in virtual time: does every vFM meet its p99?

All physical FMs of a device are simulated together, their batches sharing it evenly.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fmplex_backend.scheduling.interface import VfmPolicy
from fmplex_backend.scheduling.policies import make_queue
from fmplex_tools.bench.simulate.device import Device
from fmplex_tools.bench.simulate.together import Answers, Part, together
from fmplex_tools.bench.simulate.trace import Arrival
from fmplex_tools.planner.fleet_file import Fleet
from fmplex_tools.planner.packing import Packing
from fmplex_tools.planner.problem import Demand, Problem, Traffic

ROWS = 20_000
"""Simulated of each FM on a device, about."""
LONGEST = 3600.0
"""Virtual seconds at most."""
QUANTILE = 0.99
MORE, STEP = 1.2, 0.8
"""By which work is raised and ceilings are lowered where the simulator finds rows too late."""


@dataclass(frozen=True)
class Finding:
    """How the vFMs of one demand did on one device."""

    device: int
    demand: int
    rows: int
    p99: float
    """Seconds, of the rows of all of them together."""
    late: float
    """Part of them that took longer than their target."""

    @property
    def good(self) -> bool:
        """Whether the target is met, as far as so few rows can tell."""
        return met(self.late * self.rows, self.rows)


def met(late: float, rows: int) -> bool:
    """Whether ``late`` of ``rows`` is not more than 1 in 100, as far as so few can tell: three standard deviations."""
    allowed = 1 - QUANTILE
    return late <= allowed * rows + 3 * math.sqrt(allowed * QUANTILE * rows)


def verify(fleet: Fleet, packing: Packing, devices: Sequence[int], *, seed: int = 0) -> list[Finding]:
    """What the simulator finds on ``devices``."""
    return [finding for device in devices for finding in _on(fleet, packing, device, seed)]


def fullest(packing: Packing, most: int) -> list[int]:
    """The devices that have least time left, ``most`` of them."""
    used = np.flatnonzero(packing.used).tolist()
    return sorted(used, key=lambda device: -packing.fullness(device)["time"])[:most]


def tightened(packing: Packing, findings: Iterable[Finding]) -> Problem:
    """With more room for the vFMs that were too late; where half of their FM's were, for all of that FM.

    Never so much that an empty device would not hold what one held before. One that was late with a device of its own
    is given a replica more.
    """
    problem = packing.problem
    late: dict[int, set[int]] = defaultdict(set)
    seen: dict[int, set[int]] = defaultdict(set)
    alone: set[int] = set()
    for finding in findings:
        fm = problem.demands[finding.demand].fm
        seen[fm].add(finding.demand)
        if not finding.good:
            late[fm].add(finding.demand)
            if len(packing.on[finding.device]) == 1:
                alone.add(finding.demand)
    whole = {fm for fm, slow in late.items() if 2 * len(slow) > len(seen[fm])}

    def changed(number: int, demand: Demand) -> Demand:
        if number in alone and demand.replicas < problem.devices:
            return demand.with_another_replica()
        return _tightened(problem, demand) if demand.fm in whole or number in late[demand.fm] else demand

    return replace(problem, demands=tuple(changed(number, demand) for number, demand in enumerate(problem.demands)))


def _tightened(problem: Problem, demand: Demand) -> Demand:
    for part in (1.0, 0.5, 0.25):
        more, step = 1 + part * (MORE - 1), 1 - part * (1 - STEP)
        asked = (replace(one, work=one.work * more, ceiling=one.ceiling * step) for one in demand.asked)
        made = replace(demand, asked=tuple(asked))
        if problem.why_never(made) is None:
            return made
    return demand


def _on(fleet: Fleet, packing: Packing, device: int, seed: int) -> Iterator[Finding]:
    problem = packing.problem
    pieces = packing.on[device]
    each = [(piece.demand, *one) for piece in pieces for one in problem.demands[piece.demand].each(piece.name)]
    rates = [demand.traffic.rate / demand.replicas for _, _, demand in each]
    if not sum(rates):
        return
    kind = problem.kinds[problem.kind_of[device]].name
    fms = {problem.demands[piece.demand].fm for piece in pieces}
    span = min(LONGEST, ROWS * len(fms) / sum(rates))
    rng = np.random.default_rng([seed, device])
    arrivals: list[Arrival] = []
    policies: dict[int, dict[str, VfmPolicy]] = defaultdict(dict)
    owner = {}
    for (number, vfm, demand), rate in zip(each, rates, strict=True):
        name, traffic = f"{number} {vfm}", demand.traffic
        owner[name] = number, demand.target
        policies[demand.fm][name] = VfmPolicy(traffic.weight, max(512, 4 * traffic.burst))
        arrivals += _arrivals(name, traffic, rate, span, rng)
    arrivals.sort(key=lambda arrival: arrival.time)
    parts = []
    for fm, own in policies.items():
        spec = fleet.fms[problem.fms[fm].name]
        cost = spec.cost[kind].model()
        parts.append(Part(make_queue("fair", spec.max_batch_rows, cost), Device(cost), own))
    yield from _findings(device, owner, together(parts, arrivals, seed=seed))


def _arrivals(name: str, traffic: Traffic, rate: float, span: float, rng: np.random.Generator) -> Iterator[Arrival]:
    """Of one vFM: bursts as a Poisson process."""
    lengths, often = (np.array(part) for part in zip(*traffic.lengths, strict=True))
    times = rng.uniform(0, span, rng.poisson(rate / traffic.burst * span))
    sizes = rng.choice(lengths, (len(times), traffic.burst), p=often / often.sum())
    for time, own in zip(times.tolist(), sizes.tolist(), strict=True):
        yield Arrival(time, name, tuple(own))


def _findings(device: int, owner: Mapping[str, tuple[int, float]], answers: Answers) -> Iterator[Finding]:
    """``owner``: name → number of its demand, and seconds within which it is to be answered."""
    taken: dict[int, list[float]] = defaultdict(list)
    lost: dict[int, int] = defaultdict(int)
    slow: dict[int, int] = defaultdict(int)
    for name, (number, target) in owner.items():
        taken[number] += answers.latencies[name]
        lost[number] += answers.rejected[name]
        slow[number] += sum(latency > target for latency in answers.latencies[name])
    for number, latencies in taken.items():
        rows = len(latencies) + lost[number]
        if not rows:
            continue
        late = lost[number] + slow[number]
        p99 = float(np.quantile(latencies, QUANTILE)) if latencies else float("inf")
        yield Finding(device, number, rows, p99, late / rows)
