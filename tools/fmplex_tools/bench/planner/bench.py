"""What is measured of the planner; nothing is served."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.progress import Progress

from fmplex_tools.bench.fair.bench import Figure, Outcome
from fmplex_tools.bench.planner.fleets import exchanged, large_fleet, random_fleet
from fmplex_tools.planner import estimate, exact, fast
from fmplex_tools.planner.fleet_file import read_fleet
from fmplex_tools.planner.placement import PlanFile
from fmplex_tools.planner.planning import Plan, plan
from fmplex_tools.planner.problem import problem_of
from fmplex_tools.planner.verify import fullest, verify

Tell = Callable[[str], None]
MOST_SECONDS = 60.0
MANY_ROWS = 500
"""Simulated of a vFM for its p99 to say something."""


@dataclass(frozen=True, kw_only=True)
class PlannerPlan:
    """What is to be planned."""

    vfms: int = 100_000
    devices: int = 1_000
    small: int = 40
    """Fleets that are solved exactly too."""
    seed: int = 0


def planner(asked: PlannerPlan, progress: Progress, noted: dict[str, Any]) -> Outcome:
    """Measure all of it."""
    del noted
    line = progress.add_task("", total=None)

    def tell(what: str) -> None:
        progress.update(line, description=what)

    figures = [*_large(asked, tell), *_small(asked, tell), *_true(asked, tell)]
    progress.remove_task(line)
    return Outcome(figures, {})


def _large(asked: PlannerPlan, tell: Tell) -> list[Figure]:
    """From a file to a plan that the simulator finds good, and from that to the next."""
    part = f"{asked.vfms:,} vFMs on {asked.devices:,} devices"
    made = large_fleet(asked.vfms, asked.devices, asked.seed)
    first, reading, placing = _timed(made, None, tell)
    bad = [finding for finding in first.findings if not finding.good]
    missing = len(first.placement.missing(first.problem))
    figures = [
        Figure(part, "read, planned and checked in", reading + placing, "s", f"≤ {MOST_SECONDS:.0f} s",
               reading + placing <= MOST_SECONDS),
        Figure(part, "… of which reading the file", reading, "s"),
        Figure(part, "without a place", missing, "", "0", not missing),
        Figure(part, "devices used", len(first.placement.by_device())),
        Figure(part, "… that every placement takes", first.bound),
        Figure(part, "simulated, of the fullest devices: vFMs too slow", len(bad), "", "0", not bad),
        Figure(part, "times that it was placed anew for that", first.tightenings),
    ]  # fmt: skip
    change = exchanged(made, 0.01, asked.seed + 1)
    tell("1 % exchanged")
    second, reading, placing = _timed(change, PlanFile.of(first.placement, first.problem), tell)
    assert second.changes is not None
    part = f"{asked.vfms // 100:,} of them exchanged"
    return [
        *figures,
        Figure(part, "read, planned and checked in", reading + placing, "s"),
        Figure(part, "vFMs that stay, moved", len(second.changes.moved)),
        Figure(part, "without a place", len(second.placement.missing(second.problem))),
    ]


def _timed(made: dict[str, Any], before: PlanFile | None, tell: Tell) -> tuple[Plan, float, float]:
    """The plan, seconds of reading and of planning."""
    with tempfile.TemporaryDirectory(prefix="fmplex-bench-") as folder:
        file = Path(folder) / "fleet.yaml"
        tell("writing the file")
        file.write_text(yaml.safe_dump(made), encoding="utf-8")
        tell("reading it")
        begun = time.perf_counter()
        fleet = read_fleet(file)
        read = time.perf_counter()
        found = plan(fleet, before=before, tell=tell)
        return found, read - begun, time.perf_counter() - read


def _small(asked: PlannerPlan, tell: Tell) -> list[Figure]:
    """The heuristic against the best there is."""
    ours = best = 0.0
    solved = worse = 0
    for number in range(asked.small):
        tell(f"small fleet {number + 1} of {asked.small}")
        problem = problem_of(random_fleet(asked.seed + number))
        packing = fast.pack(problem, seconds=5)
        optimum = exact.solve(problem, packing, seconds=20)
        if optimum is None or not optimum.optimal:
            continue
        (lost, price), (least_lost, least) = fast.badness(packing), fast.badness(optimum.packing)
        if lost != least_lost:
            worse += 1
            continue
        solved, ours, best = solved + 1, ours + price, best + least
    part = f"{asked.small} random small fleets, against HiGHS"
    ratio = ours / best if best else 1.0
    return [
        Figure(part, "solved to the end, with as many vFMs placed", solved),
        Figure(part, "placed fewer vFMs", worse),
        Figure(part, "price of all plans, of the best", ratio, "x", "≤ 1.05", ratio <= 1.05),
    ]


def _true(asked: PlannerPlan, tell: Tell) -> list[Figure]:
    """The simulator's p99 as a part of what was estimated."""
    found = []
    for number in range(asked.small):
        tell(f"simulating fleet {number + 1} of {asked.small}")
        fleet = random_fleet(1000 + asked.seed + number)
        problem = problem_of(fleet)
        packing = fast.pack(problem, seconds=3)
        for one in verify(fleet, packing, fullest(packing, 2), seed=number):
            demand, kind = problem.demands[one.demand], problem.kind_of[one.device]
            own = demand.target - estimate.ROUNDS * demand.asked[kind].ceiling
            if one.rows > MANY_ROWS:
                found.append(one.p99 / (estimate.ROUNDS * packing.round_of(one.device) + own))
    part = f"p99 of {len(found)} vFMs on the fullest devices of {asked.small} random fleets"
    told = {"median": 0.5, "95th percentile": 0.95, "largest": 1.0}
    return [
        Figure(part, f"simulated, of the estimate, {name}", float(np.quantile(found, q)), "x")
        for name, q in told.items()
    ]
