"""What happens to a fleet under load, again and again, and what its clients notice of it."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fmplex_tools.bench.fair.bench import Figure
from fmplex_tools.bench.faults.checked import CheckedLoad
from fmplex_tools.bench.fleet.deployed import Deployed
from fmplex_tools.process_tree import kill, tree

KINDS = ("tritonserver", "server", "agent", "node", "controller", "drain", "door")
"""By turns: tritonserver, `fmplex serve` with all that is below it, an agent, a whole node, the controller; a node is
drained and used again; and Envoy."""
REST = (2.0, 4.0)
"""Seconds between one and the next, at random between these: a gRPC channel that was refused waits for a second."""


OURS, THEIRS = "fmplex_client", "Triton's own clients"
"""Who asks: with retries where they are safe, and without any."""


@dataclass
class Noticed:
    """By some clients, of one kind of event."""

    kind: str
    clients: str
    times: int = 0
    answered: int = 0
    wrong: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    slowest: list[float] = field(default_factory=list)
    """Seconds of the slowest request around each event."""
    settled: list[float] = field(default_factory=list)
    """Seconds until the fleet was as planned again."""

    def add(self, load: CheckedLoad, settled: float) -> None:
        """One more event."""
        self.times += 1
        self.answered += load.answered
        self.wrong += load.wrong
        self.lost += load.lost
        self.slowest.append(load.slowest)
        self.settled.append(settled)

    def figures(self) -> list[Figure]:
        """For the table."""
        lost = self.lost.total()
        asked = self.answered + lost
        part = f"{self.kind}, {self.times} times, {self.clients}"
        slow, back = np.array(self.slowest), np.array(self.settled)
        promised = self.clients == OURS
        return [
            Figure(part, "requests", asked),
            Figure(part, "lost", lost, "", "0" if promised else "", lost == 0 if promised else None),
            Figure(part, "answered wrongly", self.wrong, "", "0", self.wrong == 0),
            Figure(part, "slowest request, p50", float(np.median(slow)), f"s (longest {slow.max():.1f})"),
            Figure(part, "as planned again, p50", float(np.median(back)), f"s (longest {back.max():.1f})"),
        ]


def make_happen(fleet: Deployed, kind: str) -> Callable[[], object] | None:
    """Do it; what is to be done afterwards, so that the fleet gets whole again."""
    if kind == "controller":
        next(iter(fleet.nodes.workers("_ControllerActor").values())).kill()
        return None
    if kind == "door":
        fleet.envoy().kill()
        return None
    device = fleet.busiest()
    number = fleet.node_of(device)
    if kind == "agent":
        fleet.nodes.workers("_AgentActor")[number].kill()
        return None
    if kind == "drain":
        fleet.controller.drain(device, False)
        return lambda: fleet.controller.drain(device, True)
    serve = fleet.serve_process(device)
    processes = tree(serve.pid)
    if kind == "tritonserver":
        next(child for child in processes if child.name() == "tritonserver").kill()
        return None
    if kind == "node":
        fleet.nodes.kill(number)
    kill(processes)
    if kind == "server":
        return None
    fleet.wait_without(device)
    return lambda: fleet.nodes.start(number)


def go_through(
    fleet: Deployed,
    loads: Mapping[str, CheckedLoad],
    kinds: tuple[str, ...],
    times: int,
    seed: int,
    tell: Callable[[str], None],
) -> dict[tuple[str, str], Noticed]:
    """Each of ``kinds`` so many ``times``, by turns, under ``loads``, which go on. (Kind, whose load) → what came."""
    chance = random.Random(seed)
    noticed = {(kind, whose): Noticed(kind, whose) for kind in kinds for whose in loads}
    for _ in range(times):
        for kind in kinds:
            tell(kind)
            for load in loads.values():
                load.begin()
            begun = time.monotonic()
            afterwards = make_happen(fleet, kind)
            if afterwards is None:
                time.sleep(1.0)  # until it is noticed
            fleet.wait_settled()
            settled = time.monotonic() - begun
            if afterwards is not None:
                afterwards()
                fleet.wait_settled()
            time.sleep(chance.uniform(*REST))
            for whose, load in loads.items():
                noticed[kind, whose].add(load, settled)
    return noticed


def as_details(noticed: Mapping[tuple[str, str], Noticed]) -> list[dict[str, Any]]:
    """For the file of figures."""
    return [vars(own) for own in noticed.values()]
