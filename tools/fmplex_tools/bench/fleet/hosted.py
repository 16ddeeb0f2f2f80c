"""How many tasks a few nodes of little memory host: vFMs of a fleet, against private copies; all started and loaded.

1. Private copies on one node, first few, then as many as its memory holds by the line through those; then so many on
   every node at once, each node a tritonserver of its own, all asked at the rate of the target.
2. A fleet of the same nodes behind its door, with as many vFMs as are tried, asked at the same rate each.

Memory is what a node's processes take together, pages that they share counted once (PSS).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from pydantic import ByteSize, TypeAdapter
from rich.progress import Progress

from fmplex_backend.errors import InvalidInput
from fmplex_tools.bench.compare.answers import Summary, summary
from fmplex_tools.bench.compare.comparison import replay
from fmplex_tools.bench.compare.deployments import DEPLOYMENTS
from fmplex_tools.bench.compare.plan import WARM
from fmplex_tools.bench.compare.replayer import Replay
from fmplex_tools.bench.compare.started import Started, start
from fmplex_tools.bench.compare.workload import Workload, schedule
from fmplex_tools.bench.engine.fleet_server import workplace
from fmplex_tools.bench.fair.bench import Figure, Outcome
from fmplex_tools.bench.fleet.deployed import Deployed, FleetRun

FEW = (2, 5)
"""Private copies by which it is found how many a node holds."""
GOAL = 20.0
Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class HostedPlan(FleetRun):
    """What is to be tried."""

    vfms: int = 660
    spare: int = 0
    replicas: int = 1
    slots: int = 128
    demand: float = 0.05
    """Requests a second of each task."""
    seconds: float = 60.0
    p99_ms: float = 500.0

    @property
    def node_bytes(self) -> int:
        """Memory of a node."""
        return int(TypeAdapter(ByteSize).validate_python(self.memory))


def hosted(plan: HostedPlan, progress: Progress, noted: dict[str, Any]) -> Outcome:
    """Start and load both. Raises `FMplexError` where something does not come up."""
    line = progress.add_task("private copies", total=None)

    def tell(what: str) -> None:
        progress.update(line, description=what)

    copies, figures = _private(plan, tell)
    tell(f"a fleet with {plan.vfms} vFMs")
    figures += _fleet(plan, tell)
    figures.append(_ratio(plan, copies, figures))
    noted["private copies"] = copies
    progress.remove_task(line)
    return Outcome(figures, {})


def _ratio(plan: HostedPlan, copies: int, figures: list[Figure]) -> Figure:
    ratio = plan.vfms / copies
    held = all(figure.good is not False for figure in figures)
    return Figure("tasks of a fleet to private copies", "ratio", ratio, "x", f"≥ {GOAL:g}", held and ratio >= GOAL)


def _private(plan: HostedPlan, tell: Tell) -> tuple[int, list[Figure]]:
    """Copies on all nodes, and how they did."""
    taken = []
    for count in FEW:
        tell(f"a node with {count} private copies")
        with _node(plan, count) as one:
            taken.append(one.memory())
    each = (taken[1] - taken[0]) / (FEW[1] - FEW[0])
    most = int((plan.node_bytes - taken[0]) / each) + FEW[0]
    if most < 1:
        raise InvalidInput(f"a node of {plan.memory} holds no private copy: one takes {taken[0] / 1e6:,.0f} MB")
    tell(f"{plan.nodes} nodes with {most} private copies each")
    with contextlib.ExitStack() as nodes:
        started = [nodes.enter_context(_node(plan, most)) for _ in range(plan.nodes)]
        with ThreadPoolExecutor(len(started)) as loads:
            told = list(loads.map(lambda one: _asked(plan, one, most), started))
        memory = max(one.memory() for one in started)
    part = f"private copies, {plan.nodes} nodes of {plan.memory}"
    worst = max(told, key=lambda own: own.p99_ms)
    figures = [
        Figure(part, "each takes", each / 1e6, "MB"),
        Figure(part, "on every node", most),
        Figure(part, "on all nodes", most * plan.nodes),
    ]
    return most * plan.nodes, figures + _measured(plan, part, worst, sum(own.failed for own in told), memory)


@contextlib.contextmanager
def _node(plan: HostedPlan, copies: int) -> Iterator[Started]:
    with start(DEPLOYMENTS["best_effort"], plan.source, plan.fm, copies, seed=plan.seed, threads=1) as one:
        yield one


def _asked(plan: HostedPlan, one: Started, tasks: int) -> Summary:
    with replay(one, plan.seed) as load:
        return _load(plan, load, tasks)


def _load(plan: HostedPlan, load: Replay, tasks: int) -> Summary:
    drawn = schedule(Workload(tasks=tasks, rate=plan.demand * tasks, seconds=plan.seconds, seed=plan.seed))
    return summary(load.open(drawn), warm=WARM, until=plan.seconds)


def _fleet(plan: HostedPlan, tell: Tell) -> list[Figure]:
    with workplace() as place:
        deployed = Deployed(plan, place)
        with deployed.running():
            tell(f"loading {plan.vfms} vFMs through the door")
            with Replay(deployed.door, deployed.names, seed=plan.seed) as load:
                _load(
                    plan, load, plan.vfms
                )  # every vFM has been asked once, more or less: caches are what they stay at
                told = _load(plan, load, plan.vfms)
            devices = deployed.controller.status()["devices"].values()
            memory = max(device["report"]["used"] for device in devices)
    part = f"vFMs of a fleet, {plan.nodes} nodes of {plan.memory}"
    figures = [Figure(part, "on all nodes", plan.vfms)]
    return figures + _measured(plan, part, told, told.failed, memory)


def _measured(plan: HostedPlan, part: str, told: Summary, failed: int, memory: int) -> list[Figure]:
    return [
        Figure(part, "memory of the fullest node", memory / 1e9, "GB", f"≤ {plan.memory}", memory <= plan.node_bytes),
        Figure(part, "requests that failed", failed, "", "0", failed == 0),
        Figure(part, "p50", told.p50_ms, "ms"),
        Figure(part, "p99", told.p99_ms, "ms", f"≤ {plan.p99_ms:g} ms", told.p99_ms <= plan.p99_ms),
    ]
