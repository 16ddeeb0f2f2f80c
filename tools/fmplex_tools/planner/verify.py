"""Checking a placement against the real queue, in virtual time: does every vFM meet its p99?

A device's FMs compute in turn, so an FM whose neighbours take a part s of the time is simulated on a device that takes
1 / (1 - s) times as long for everything.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fmplex_backend.scheduling.cost import CostModel
from fmplex_backend.scheduling.interface import VfmPolicy
from fmplex_backend.scheduling.policies import make_queue
from fmplex_tools.bench.simulate.device import Device
from fmplex_tools.bench.simulate.run import simulate
from fmplex_tools.bench.simulate.trace import Arrival, Load
from fmplex_tools.planner.fleet_file import Fleet
from fmplex_tools.planner.packing import Packing, Piece
from fmplex_tools.planner.problem import Problem

ROWS = 20_000
"""Simulated of each physical FM on a device, about."""
LONGEST = 3600.0
"""Virtual seconds at most."""
QUANTILE = 0.99
MORE, STEP = 1.1, 0.85
"""By which work is raised and ceilings are lowered where the simulator finds rows too late."""
MOST_BUSY = 0.98


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
        """Whether the target is met, as far as so few rows can tell: within three standard deviations."""
        allowed = 1 - QUANTILE
        return self.late <= allowed + 3 * math.sqrt(allowed * QUANTILE / max(self.rows, 1))


def verify(fleet: Fleet, packing: Packing, devices: Sequence[int], *, seed: int = 0) -> list[Finding]:
    """What the simulator finds on ``devices``."""
    return [finding for device in devices for finding in _on(fleet, packing, device, seed)]


def fullest(packing: Packing, most: int) -> list[int]:
    """The devices that have least time left, ``most`` of them."""
    used = np.flatnonzero(packing.used).tolist()
    return sorted(used, key=lambda device: -packing.fullness(device)["time"])[:most]


def tightened(problem: Problem, findings: Iterable[Finding]) -> Problem:
    """With more room for all vFMs of the physical FMs that had some that were too late."""
    late = {problem.demands[finding.demand].fm for finding in findings if not finding.good}
    demands = list(problem.demands)
    for number, demand in enumerate(demands):
        if demand.fm in late:
            asked = (replace(one, work=one.work * MORE, ceiling=one.ceiling * STEP) for one in demand.asked)
            demands[number] = replace(demand, asked=tuple(asked))
    return replace(problem, demands=tuple(demands))


def _on(fleet: Fleet, packing: Packing, device: int, seed: int) -> Iterator[Finding]:
    problem = packing.problem
    kind = problem.kind_of[device]
    by_fm: dict[int, list[Piece]] = defaultdict(list)
    for piece in packing.on[device]:
        by_fm[problem.demands[piece.demand].fm].append(piece)
    round_, parts = packing.round_of(device), {}
    for fm, pieces in by_fm.items():
        work = sum(problem.demands[piece.demand].asked[kind].work for piece in pieces)
        parts[fm] = work + problem.fms[fm].alpha[kind] / round_
    for fm, pieces in by_fm.items():
        spec = fleet.fms[problem.fms[fm].name]
        others = min(MOST_BUSY, sum(part for other, part in parts.items() if other != fm))
        cost = _slowed(spec.cost[problem.kinds[kind].name].model(), 1 / (1 - others))
        yield from _simulated(problem, device, pieces, cost, spec.max_batch_rows, seed)


def _slowed(cost: CostModel, factor: float) -> CostModel:
    return CostModel(cost.alpha * factor, cost.beta * factor, cost.gamma * factor, cost.delta * factor)


def _simulated(
    problem: Problem, device: int, pieces: Sequence[Piece], cost: CostModel, most_rows: int, seed: int
) -> Iterator[Finding]:
    rng = np.random.default_rng([seed, device])
    rates = [problem.demands[p.demand].traffic.rate / problem.demands[p.demand].replicas for p in pieces]
    if not sum(rates):
        return
    span = min(LONGEST, ROWS / sum(rates))
    arrivals, policies, owner = [], {}, {}
    for piece, rate in zip(pieces, rates, strict=True):
        demand = problem.demands[piece.demand]
        name, traffic = demand.names[piece.name], demand.traffic
        owner[name] = piece.demand
        policies[name] = VfmPolicy(traffic.weight, max(512, 4 * traffic.burst))
        lengths, often = (np.array(part) for part in zip(*traffic.lengths, strict=True))
        times = rng.uniform(0, span, rng.poisson(rate / traffic.burst * span))
        for time in times.tolist():
            sizes = rng.choice(lengths, traffic.burst, p=often / often.sum())
            arrivals.append(Arrival(time, name, tuple(sizes.tolist())))
    arrivals.sort(key=lambda arrival: arrival.time)
    outcome = simulate(
        make_queue("fair", most_rows, cost), Load(policies, span, arrivals), Device(cost), seed=seed, warm_up=0.02
    )
    taken: dict[int, list[float]] = defaultdict(list)
    lost: dict[int, int] = defaultdict(int)
    for name, counts in outcome.by_vfm.items():
        taken[owner[name]] += counts.latencies
        lost[owner[name]] += counts.rejected
    for number, latencies in taken.items():
        rows = len(latencies) + lost[number]
        if not rows:
            continue
        late = lost[number] + sum(latency > problem.demands[number].target for latency in latencies)
        p99 = float(np.quantile(latencies, QUANTILE)) if latencies else float("inf")
        yield Finding(device, number, rows, p99, late / rows)
