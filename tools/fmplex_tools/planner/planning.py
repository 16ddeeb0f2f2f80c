"""From a fleet to a plan: which solver, checked how, and what it says in the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from fmplex_tools.planner import exact, fast
from fmplex_tools.planner.fleet_file import Fleet
from fmplex_tools.planner.packing import Packing, pieces_of
from fmplex_tools.planner.placement import Placement, PlanFile
from fmplex_tools.planner.problem import Problem, problem_of
from fmplex_tools.planner.replan import Changes, changes, replan
from fmplex_tools.planner.verify import Finding, fullest, tightened, verify

Solver = Literal["auto", "exact", "fast"]
ATTEMPTS = 4
"""Times that ceilings are lowered where the simulator finds a p99 missed."""
MOST_EXTRA = 20_000
"""Replicas without a place up to which it is found out what would hold them."""

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """A placement, and how it came about."""

    packing: Packing
    how: str
    """By which solver, for people."""
    bound: float
    """No placement costs less."""
    findings: list[Finding] = field(default_factory=list)
    tightenings: int = 0
    changes: Changes | None = None

    @property
    def problem(self) -> Problem:
        return self.packing.problem

    @cached_property
    def placement(self) -> Placement:
        return self.packing.placement()

    @property
    def good(self) -> bool:
        """Whether every vFM has its place, and the simulator found no p99 missed."""
        return not self.placement.missing(self.problem) and all(finding.good for finding in self.findings)


def plan(
    fleet: Fleet,
    *,
    before: PlanFile | None = None,
    solver: Solver = "auto",
    seconds: float = fast.SECONDS,
    checked: int = 8,
    seed: int = 0,
    tell: Tell = lambda _: None,
) -> Plan:
    """A placement of ``fleet``, or the least change to ``before`` that makes one.

    ``checked``: devices, the fullest, that are simulated; where they miss a p99, what they hold is placed anew with
    more room. Raises `InvalidInput`.
    """
    problem, tightenings = problem_of(fleet), 0
    best: Plan | None = None
    while True:
        tell("placing")
        made = _placed(problem, before, solver, seconds, tell, best)
        if not checked:
            return made
        tell(f"simulating the {checked} fullest devices")
        findings = verify(fleet, made.packing, fullest(made.packing, checked), seed=seed)
        made = replace(made, findings=findings, tightenings=tightenings)
        fits = best is None or len(made.placement.missing(problem)) <= len(best.placement.missing(best.problem))
        best = made if best is None else min(best, made, key=_badness)
        if best.good or tightenings == ATTEMPTS or not fits:
            return best
        problem, tightenings = tightened(made.packing, made.findings), tightenings + 1


def _badness(made: Plan) -> tuple[int, int, float]:
    """What is to be low: vFMs without a place, what the simulator finds too slow, the price."""
    slow = sum(not finding.good for finding in made.findings)
    return len(made.placement.missing(made.problem)), slow, made.placement.price(made.problem)


def _placed(
    problem: Problem, before: PlanFile | None, solver: Solver, seconds: float, tell: Tell, last: Plan | None
) -> Plan:
    """Anew, or as a change to what was ``before``; of a large fleet, to the ``last`` plan that was too slow."""
    bound = fast.least_price(problem)
    if before is not None:
        old = before.placement(problem)
        packing = replan(problem, old)
        return Plan(packing, "what was there stays where it can", bound, changes=changes(old, packing.placement()))
    if last is not None and len(pieces_of(problem)) > fast.MANY:
        return Plan(replan(problem, last.placement), "best fit, and what was too slow moved", bound)
    packing = fast.pack(problem, seconds)
    if problem.spread:
        return Plan(packing, "spread over all devices", bound)
    if solver == "fast" or (solver == "auto" and exact.size_of(problem) > exact.MOST):
        return Plan(packing, "best fit", bound)
    tell("looking for the best there is")
    solved = exact.solve(problem, packing, seconds)
    if solved is None:
        return Plan(packing, f"best fit; nothing exact was found in {seconds:g} s", bound)
    better = min(packing, solved.packing, key=fast.badness)
    if not better.placement().missing(problem):
        bound = max(bound, solved.bound)
    if solved.optimal:
        return Plan(better, "the best there is (HiGHS)", bound)
    return Plan(better, f"the best that HiGHS found in {seconds:g} s", bound)


# ---- what would make it fit ----


@dataclass(frozen=True)
class Missing:
    """vFMs of one demand that have no place."""

    names: list[str]
    why: str | None
    """Why they never fit on the kinds of devices there are; None: there are too few devices."""


def missing_of(plan: Plan) -> list[Missing]:
    """Those without a place, demand by demand."""
    placed, problem = plan.placement.on, plan.problem
    found = []
    for demand in problem.demands:
        names = [name for name in demand.names if name not in placed]
        if names:
            why = problem.why_never(demand)
            if why is None and demand.replicas > problem.devices:
                why = f"{demand.replicas} replicas need as many devices; there are {problem.devices}"
            found.append(Missing(names, why))
    return found


def devices_more(plan: Plan) -> dict[str, int]:
    """Kind → devices of it that would hold what has no place now but could have one; kinds that do are left out."""
    problem, placed = plan.problem, plan.placement.on
    demands = [
        replace(demand, names=tuple(name for name in demand.names if name not in placed))
        for number, demand in enumerate(problem.demands)
        if number not in problem.hopeless
    ]
    left = replace(problem, demands=tuple(demand for demand in demands if demand.names))
    pieces = sum(demand.pieces for demand in left.demands)
    found: dict[str, int] = {}
    if not 0 < pieces <= MOST_EXTRA:
        return found
    for number, kind in enumerate(problem.kinds):
        one = replace(left, kinds=tuple(replace(k, count=0) for k in left.kinds)).with_devices(number, pieces)
        extra = fast.pack(one, seconds=5)
        if not extra.placement().missing(one):
            found[kind.name] = int(extra.used.sum())
    return found
