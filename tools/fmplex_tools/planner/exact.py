"""The best placement there is, for small fleets: a mixed-integer program, solved by HiGHS through SciPy.

Whole numbers n say how many of a demand's replicas are on a device; yes-or-no variables, whether a device is used, an
FM is there, and a ceiling holds there (a vFM with that ceiling is on it). With them, everything is linear:

- memory: Σ n·bytes + Σ FM's bytes ≤ the device's;
- slots: Σ n·slots ≤ the FM's, where the FM is;
- time, for each ceiling c that holds: Σ n·(work + spread / c) + Σ α_f / c ≤ 1;
- FMs of a device: no more than it may have;
- a vFM's replicas on different devices: n ≤ how many vFMs of the demand there are.

Of devices that are alike, the first are used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from fmplex_tools.planner.packing import Packing, Piece
from fmplex_tools.planner.problem import FULLEST, FULLEST_PART, Problem

SECONDS = 20.0
MOST = 4_000
"""Variables up to which it is tried."""


@dataclass(frozen=True)
class Solved:
    """What the solver found."""

    packing: Packing
    optimal: bool
    bound: float
    """No placement costs less."""


class _Program:
    """Variables with names, and constraints row by row."""

    def __init__(self) -> None:
        self.numbers: dict[tuple[str, int, int], int] = {}
        self.cost: list[float] = []
        self.upper: list[float] = []
        self._rows: list[tuple[int, int, float]] = []
        self._least: list[float] = []
        self._most: list[float] = []

    def add(self, kind: str, first: int, second: int, upper: float, cost: float = 0.0) -> None:
        self.numbers[kind, first, second] = len(self.cost)
        self.cost.append(cost)
        self.upper.append(upper)

    def bound(
        self, terms: Mapping[tuple[str, int, int], float], most: float = math.inf, least: float = -math.inf
    ) -> None:
        row = len(self._most)
        self._rows += [(row, self.numbers[name], factor) for name, factor in terms.items() if factor]
        self._least.append(least)
        self._most.append(most)

    def solve(self, seconds: float) -> object:
        rows, columns, factors = (np.array(part) for part in zip(*self._rows, strict=True))
        shape = (len(self._most), len(self.cost))
        matrix = coo_array((factors.astype(float), (rows.astype(int), columns.astype(int))), shape=shape).tocsr()
        return milp(
            np.array(self.cost),
            constraints=LinearConstraint(matrix, self._least, self._most),
            integrality=np.ones(len(self.cost)),
            bounds=Bounds(0, np.array(self.upper)),
            options={"time_limit": seconds, "mip_rel_gap": 1e-6},
        )


def size_of(problem: Problem) -> int:
    """About how many variables there would be."""
    return problem.devices * (2 * len(problem.demands) + 3 * len(problem.fms) + 1)


def solve(problem: Problem, known: Packing, seconds: float = SECONDS) -> Solved | None:
    """The cheapest placement of all vFMs; where they do not all fit, one of most of them. None: nothing in ``seconds``.

    ``known`` is a placement that is good, which tells how many devices there is need of at most.
    """
    missing = known.placement().missing(problem)
    program = _program(problem, most=bool(missing))
    found = program.solve(seconds)
    values, bound = getattr(found, "x", None), getattr(found, "mip_dual_bound", None)
    if values is None:
        return None
    counts = {
        (number, device): round(values[place])
        for (kind, number, device), place in program.numbers.items()
        if kind == "n"
    }
    packing = _placed(problem, counts)
    return Solved(packing, getattr(found, "status", 1) == 0, 0.0 if bound is None else float(bound))


def _program(problem: Problem, *, most: bool) -> _Program:
    """With ``most``: as many vFMs as there is room for, and among such placements a cheap one."""
    program = _Program()
    devices = range(problem.devices)
    prices = [problem.kinds[kind].price for kind in problem.kind_of]
    small = 1.0 / (1 + sum(prices)) if most else 1.0
    for device in devices:
        program.add("used", device, 0, 1, prices[device] * small)
        for fm in range(len(problem.fms)):
            program.add("fm", fm, device, 1)
    for number, demand in enumerate(problem.demands):
        names = len(demand.names)
        program.add("hosted", number, 0, names, -1.0 if most else 0.0)
        for device in devices:
            kind = problem.kind_of[device]
            good = demand.asked[kind].ceiling > 0 and not math.isnan(problem.fms[demand.fm].alpha[kind])
            program.add("n", number, device, names if good else 0)
            program.bound({("n", number, device): 1, ("fm", demand.fm, device): -names}, 0)
            if demand.replicas > 1:
                program.bound({("n", number, device): 1, ("hosted", number, 0): -1}, 0)
        shares = {("n", number, device): 1.0 for device in devices}
        program.bound({**shares, ("hosted", number, 0): -demand.replicas}, 0, 0)
        if not most:
            program.bound({("hosted", number, 0): 1}, least=names)
    for device in devices:
        _bound_device(program, problem, device)
    _bound_groups(program, problem)
    for device in devices[1:]:
        if problem.kind_of[device] == problem.kind_of[device - 1]:
            program.bound({("used", device, 0): 1, ("used", device - 1, 0): -1}, 0)
    return program


def _bound_device(program: _Program, problem: Problem, device: int) -> None:
    kind = problem.kind_of[device]
    memory = {("used", device, 0): -float(problem.kinds[kind].memory)}
    work = {("used", device, 0): -FULLEST}
    for fm, shared in enumerate(problem.fms):
        own = {number: demand for number, demand in enumerate(problem.demands) if demand.fm == fm}
        memory["fm", fm, device] = shared.memory
        slots = {("n", number, device): float(demand.slots) for number, demand in own.items()}
        program.bound({**slots, ("fm", fm, device): -shared.slots}, 0)
        program.bound({("fm", fm, device): 1, ("used", device, 0): -1}, 0)
    runs = {n: demand.asked[kind] for n, demand in enumerate(problem.demands) if demand.asked[kind].ceiling > 0}
    names = {number: len(problem.demands[number].names) for number in runs}
    for number, one in runs.items():
        memory["n", number, device] = problem.demands[number].memory
        work["n", number, device] = one.work
    program.bound({name: factor / 1e6 for name, factor in memory.items()}, 0)  # MB: of the size of the others
    program.bound(work, 0)
    alphas = {fm: shared.alpha[kind] for fm, shared in enumerate(problem.fms) if not math.isnan(shared.alpha[kind])}
    for level, ceiling in enumerate(sorted({one.ceiling for one in runs.values()})):
        program.add("holds", level, device, 1)
        slack = (sum(alphas.values()) + sum(one.spread * names[number] for number, one in runs.items())) / ceiling
        time = {("n", number, device): one.work + one.spread / ceiling for number, one in runs.items()}
        time |= {("fm", fm, device): alpha / ceiling for fm, alpha in alphas.items()}
        program.bound({**time, ("holds", level, device): slack}, 1 + slack)
        for number, one in runs.items():
            if one.ceiling == ceiling:
                program.bound({("n", number, device): 1, ("holds", level, device): -names[number]}, 0)
    if len(problem.fms) > 1:
        _bound_parts(program, problem, device)


def _bound_parts(program: _Program, problem: Problem, device: int) -> None:
    """No FM has more to do than its part of the device, which is even, or what the others leave."""
    kind, fms = problem.kind_of[device], range(len(problem.fms))
    runs = {n: demand.asked[kind] for n, demand in enumerate(problem.demands) if demand.asked[kind].ceiling > 0}
    for fm in fms:
        program.add("there are", fm + 1, device, 1)
        program.add("even", fm, device, 1)
    program.bound({("there are", fm + 1, device): 1 for fm in fms}, 1, 1)
    at_most = {("there are", fm + 1, device): -(fm + 1.0) for fm in fms}
    program.bound({**at_most, **{("fm", fm, device): 1 for fm in fms}}, 0)
    slack = FULLEST_PART * sum(one.unmerged * len(problem.demands[number].names) for number, one in runs.items())
    for fm in fms:
        work = {("n", n, device): one.work for n, one in runs.items() if problem.demands[n].fm == fm}
        others = {
            ("n", n, device): FULLEST_PART * one.unmerged for n, one in runs.items() if problem.demands[n].fm != fm
        }
        even = {("there are", many, device): -FULLEST_PART / many for many in range(2, len(fms) + 1)}
        program.bound({**work, **even, ("there are", 1, device): -1, ("even", fm, device): 1}, 1)
        program.bound({**work, **others, ("even", fm, device): -slack}, FULLEST_PART)


def _bound_groups(program: _Program, problem: Problem) -> None:
    for group in {group for demand in problem.demands for group in demand.apart}:
        members = [number for number, demand in enumerate(problem.demands) if group in demand.apart]
        for device in range(problem.devices):
            program.bound({("n", number, device): 1 for number in members}, 1)


def _placed(problem: Problem, counts: Mapping[tuple[int, int], int]) -> Packing:
    """Which vFM is where, from how many are: one after the other around, so that no device has the same one twice."""
    packing = Packing(problem)
    for number, demand in enumerate(problem.demands):
        following = 0
        hosted = sum(counts[number, device] for device in range(problem.devices)) // demand.replicas
        for device in range(problem.devices):
            for _ in range(counts[number, device]):
                packing.add(Piece(number, following % hosted), device)
                following += 1
    return packing
