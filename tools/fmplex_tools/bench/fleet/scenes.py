"""What happens to a fleet under load, again and again, and what its clients notice of it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psutil

from fmplex_tools.bench.fair.bench import Figure
from fmplex_tools.bench.faults.checked import CheckedLoad
from fmplex_tools.bench.fleet.deployed import Deployed

KINDS = ("tritonserver", "server", "agent", "node", "controller", "door", "drain")
"""By turns: tritonserver, `fmplex serve` with all that is below it, an agent, a whole node, the controller, Envoy; and
a node is drained and used again."""
REST = (0.5, 2.0)
"""Seconds between one and the next, at random between these."""


@dataclass
class Noticed:
    """By the clients, of one kind of event."""

    times: int = 0
    answered: int = 0
    wrong: int = 0
    lost: dict[str, int] = field(default_factory=dict)
    slowest: list[float] = field(default_factory=list)
    """Seconds of the slowest request around each event."""
    settled: list[float] = field(default_factory=list)
    """Seconds until the fleet was as planned again."""

    def figures(self, what: str, clients: str) -> list[Figure]:
        """For the table."""
        lost = sum(self.lost.values())
        asked = self.answered + lost
        part = f"{what}, {self.times} times, {clients}"
        slow, back = np.array(self.slowest), np.array(self.settled)
        promised = clients == OURS
        return [
            Figure(part, "requests", asked),
            Figure(part, "lost", lost, "", "0" if promised else "", lost == 0 if promised else None),
            Figure(part, "answered wrongly", self.wrong, "", "0", self.wrong == 0),
            Figure(part, "slowest request, p50", float(np.median(slow)), f"s (longest {slow.max():.1f})"),
            Figure(part, "as planned again, p50", float(np.median(back)), f"s (longest {back.max():.1f})"),
        ]


OURS = "fmplex_client"


def make_happen(fleet: Deployed, kind: str) -> Callable[[], None] | None:
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
        fleet.wait_settled()
        return lambda: _ignore(fleet.controller.drain(device, True))
    serve = fleet.serve_process(device)
    below = serve.children(recursive=True)
    if kind == "tritonserver":
        next(child for child in below if child.name() == "tritonserver").kill()
        return None
    if kind == "node":
        fleet.nodes.kill(number)
    for process in (serve, *below):
        _end(process)
    return (lambda: fleet.nodes.start(number)) if kind == "node" else None


def _ignore(_: object) -> None:
    return None


def _end(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return


def go_through(
    fleet: Deployed, load: CheckedLoad, kinds: tuple[str, ...], times: int, seed: int, tell: Callable[[str], None]
) -> dict[str, Noticed]:
    """Each of ``kinds`` so many ``times``, by turns, under ``load``, which goes on."""
    chance = random.Random(seed)
    noticed = {kind: Noticed() for kind in kinds}
    for _ in range(times):
        for kind in kinds:
            tell(kind)
            load.begin()
            begun = time.monotonic()
            afterwards = make_happen(fleet, kind)
            if afterwards is not None and kind == "node":
                fleet.wait_settled()  # without it
            settled = 0.0
            if afterwards is None:
                time.sleep(1.0)
            else:
                settled = time.monotonic() - begun
                afterwards()
            fleet.wait_settled()
            own = noticed[kind]
            own.settled.append(settled or time.monotonic() - begun)
            time.sleep(chance.uniform(*REST))
            own.times += 1
            own.answered += load.answered
            own.wrong += load.wrong
            own.slowest.append(load.slowest)
            for why, count in load.lost.items():
                own.lost[why] = own.lost.get(why, 0) + count
    return noticed


def as_details(noticed: dict[str, Noticed]) -> dict[str, Any]:
    """For the file of figures."""
    return {kind: vars(own) for kind, own in noticed.items()}
