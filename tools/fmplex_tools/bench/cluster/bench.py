"""How many tasks so many devices host within a latency target: vFMs by the planner, and private copies.

What the planner places is simulated with the queue that serves (`fmplex_tools.planner.verify`), the fullest devices of
each plan; copies likewise (`copies`), each of them. The same rows come in for both.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rich.progress import Progress

from fmplex_tools.bench.cluster.copies import CLOSE, Copies, most_copies
from fmplex_tools.bench.cluster.world import MOST_ROWS, MOST_VFMS, World
from fmplex_tools.bench.fair.bench import Figure, Outcome
from fmplex_tools.planner.fast import least_price
from fmplex_tools.planner.fleet_file import Fleet
from fmplex_tools.planner.planning import plan
from fmplex_tools.planner.problem import problem_of
from fmplex_tools.planner.search import largest

GOAL = 12.0
CURVES = "tasks by rate"
"""Of the details: world → title → tasks at each rate."""
KIND = "device"
CHECKED = 4
PLACING_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class ClusterPlan:
    """What is asked."""

    devices: int = 100
    rates: tuple[float, ...] = (0.1, 0.5, 1.0)
    """Rows a second of each task."""
    p99_ms: float = 500.0
    seed: int = 0


def cluster(asked: ClusterPlan, worlds: list[World], judged: str, progress: Progress) -> Outcome:
    """Every rate in every world; the goal is judged, at each rate, in the one named ``judged``."""
    line = progress.add_task("", total=len(worlds) * len(asked.rates))
    outcome = Outcome()
    curves: dict[str, dict[str, list[float]]] = {}
    for world in worlds:
        outcome.figures += _costs(world)
        curves[world.name] = {"FMplex": [], "best-effort co-location": [], "spatial partitions": []}
        for rate in asked.rates:
            progress.update(line, description=f"{world.name}, {rate:g} rows/s of each task", advance=1)
            shared = most_vfms(world, asked, rate)
            free = most_copies(world, "shared", rate, asked.p99_ms / 1e3, asked.seed)
            parts = most_copies(world, "partitions", rate, asked.p99_ms / 1e3, asked.seed)
            found = (shared, free.count * asked.devices, parts.count * asked.devices)
            for own, tasks in zip(curves[world.name].values(), found, strict=True):
                own.append(tasks)
            outcome.figures += _figures(asked, world, rate, shared, free, parts, judged)
    progress.remove_task(line)
    outcome.details[CURVES] = {"rates": list(asked.rates), **curves}
    return outcome


def _costs(world: World) -> list[Figure]:
    """What each FM takes there."""
    part = f"{world.name}, {world.memory / 1e9:g} GB each ({world.says})"
    return [
        Figure(
            part,
            f"{fm.name}: a mean row, apart from its launch",
            1e3 * fm.work,
            f"ms (launch {1e3 * fm.cost.alpha:.2g} ms; {fm.replica / 1e6:.0f} MB, a copy {fm.copy / 1e6:.0f} MB)",
        )
        for fm in world.fms
    ]


def _figures(
    asked: ClusterPlan, world: World, rate: float, shared: int, free: Copies, parts: Copies, judged: str
) -> list[Figure]:
    part = f"{world.name}, {rate:g} rows/s of each task"
    best = max(free.count, parts.count) * asked.devices
    ratio = shared / best if best else float("inf")
    goal, good = (f"≥ {GOAL:g}×", ratio >= GOAL) if world.name == judged else ("", None)
    return [
        Figure(part, "vFMs", shared),
        Figure(part, f"private copies, best effort (limit: {free.limit})", free.count * asked.devices),
        Figure(part, f"… in spatial partitions (limit: {parts.limit})", parts.count * asked.devices),
        Figure(part, "vFMs to the more of both", ratio, "×", goal, good),
    ]


def most_vfms(world: World, asked: ClusterPlan, rate: float) -> int:
    """About the most tasks, as many on each FM, that the planner places on all devices, none too slow."""
    each = largest(lambda count: _placed(world, asked, rate, count), asked.devices * MOST_VFMS, CLOSE)
    return each * len(world.fms)


def _placed(world: World, asked: ClusterPlan, rate: float, each: int) -> bool:
    fleet = _fleet(world, asked, rate, each)
    if least_price(problem_of(fleet)) > asked.devices:
        return False
    return plan(fleet, solver="fast", seconds=PLACING_SECONDS, checked=CHECKED, seed=asked.seed).good


def _fleet(world: World, asked: ClusterPlan, rate: float, each: int) -> Fleet:
    whole: dict[str, Any] = {
        "devices": {KIND: {"count": asked.devices, "memory": world.memory}},
        "headroom": 0.0,
        "fms": {},
        "vfms": {},
    }
    for fm in world.fms:
        whole["fms"][fm.name] = {
            "memory": fm.replica,
            "slots": MOST_VFMS,
            "max_batch_rows": MOST_ROWS,
            "cost": {KIND: asdict(fm.cost)},
        }
        whole["vfms"][f"on_{fm.name}"] = {
            "fm": fm.name,
            "count": each,
            "memory": fm.vfm,
            "rate": rate,
            "lengths": dict(fm.lengths),
            "p99_ms": 1e3 * fm.target(asked.p99_ms / 1e3),
        }
    return Fleet.model_validate(whole)
