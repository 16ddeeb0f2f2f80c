"""Hosts and tritonservers that are killed under the load of our own client: does a request get lost?

`fmplex serve` runs over a fleet; clients of `fmplex_client` ask all vFMs one after the other. By turns the host of the
physical FM and tritonserver itself are killed. A request is lost that has no right answer within its timeout.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
from rich.progress import Progress

from fmplex_backend.errors import EngineFailure, FMplexError
from fmplex_tools.bench.engine.churn_client import make_texts
from fmplex_tools.bench.engine.fleet import FleetBase, make_fleet
from fmplex_tools.bench.engine.fleet_server import workplace
from fmplex_tools.bench.fair.bench import Figure, Outcome
from fmplex_tools.bench.faults.checked import CheckedLoad, record
from fmplex_tools.bench.faults.serving import START_SECONDS, serving
from fmplex_tools.serving import fetch_status

REST = (1.0, 4.0)
"""Seconds between serving again and the next kill, at random between these."""
VICTIMS = ("host", "tritonserver")
Back = dict[str, list[float]]
"""Victim → seconds from each kill until a request was answered that was sent after it."""


@dataclass(frozen=True, kw_only=True)
class ServersPlan(FleetBase):
    """What is to be tried."""

    kills: int = 40
    """Of hosts and tritonservers together, by turns."""
    vfms: int = 8
    texts: int = 6
    clients: int = 8


def servers(plan: ServersPlan, progress: Progress, noted: dict[str, Any]) -> Outcome:
    """Try it; what the machine is goes into ``noted``."""
    with workplace() as place:
        line = progress.add_task("starting the server", total=plan.kills)
        names = make_fleet(place / "fleet", plan.source, plan.fm, plan.vfms, rank=plan.rank, seed=plan.seed)
        with serving(place / "fleet") as (http, process):
            noted["machine"] = fetch_status(http, plan.fm)["cost_model"]["device"]
            texts = make_texts(plan.texts, plan.seed)
            load = CheckedLoad(http, names, texts, record(http, names, texts), plan.seed)
            back: Back = {}
            with load.going_on(plan.clients):
                tell = _teller(progress, line)
                _kill_all(plan, load, process, back, tell)
        progress.remove_task(line)
    return _outcome(plan, load, back)


def _teller(progress: Progress, line: Any) -> Callable[[int], None]:
    return lambda done: progress.update(line, completed=done, description="kills")


def _kill_all(
    plan: ServersPlan, load: CheckedLoad, server: psutil.Process, back: Back, tell: Callable[[int], None]
) -> None:
    chance = random.Random(plan.seed)
    for number in range(plan.kills):
        time.sleep(chance.uniform(*REST))
        name = VICTIMS[number % len(VICTIMS)]
        victim = _victim(name, plan.fm, load.url, server)
        load.mark()
        victim.kill()
        if (seconds := load.wait_served(START_SECONDS)) is None:
            raise EngineFailure(f"{name} was killed, and nothing serves after {START_SECONDS:.0f} s")
        back.setdefault(name, []).append(seconds)
        tell(number + 1)


def _victim(name: str, fm: str, http: str, server: psutil.Process) -> psutil.Process:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        with contextlib.suppress(FMplexError, psutil.NoSuchProcess, StopIteration):
            if name == "host":
                return psutil.Process(fetch_status(http, fm)["host_pid"])
            return next(child for child in server.children() if child.name() == "tritonserver")
        time.sleep(0.1)
    raise EngineFailure(f"there is no {name} to kill")


def _outcome(plan: ServersPlan, load: CheckedLoad, back: Back) -> Outcome:
    lost, part = load.lost.total(), f"{plan.kills} kills under the load of {plan.clients} clients"
    figures = [
        Figure(part, "requests answered", load.answered),
        Figure(part, "lost", lost, "", "0", lost == 0),
        Figure(part, "answered wrongly", load.wrong, "", "0", load.wrong == 0),
        Figure(part, "slowest request", load.slowest, "s"),
    ]
    for victim, seconds in back.items():
        told = f"s (p50; longest {max(seconds):.1f}, {len(seconds)} times)"
        figures.append(Figure("serves again after", victim, float(np.median(seconds)), told))
    figures += [Figure("lost", what, count) for what, count in load.lost.most_common(4)]
    return Outcome(figures, {"lost": dict(load.lost), "back": back})
