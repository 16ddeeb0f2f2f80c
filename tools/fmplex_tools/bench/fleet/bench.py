"""All that is asked of a fleet, one deployment after the other: equal answers, faults, changes, the door's price."""

from __future__ import annotations

import contextlib
import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from rich.progress import Progress

from fmplex_tools.bench.engine.churn_client import make_texts
from fmplex_tools.bench.engine.fleet_server import workplace
from fmplex_tools.bench.fair.bench import Figure, Outcome
from fmplex_tools.bench.faults.checked import TRITONS, CheckedLoad, Known, ours, record, theirs
from fmplex_tools.bench.faults.serving import serving
from fmplex_tools.bench.fleet.deployed import Deployed, FleetRun
from fmplex_tools.bench.fleet.scenes import KINDS, OURS, THEIRS, as_details, go_through
from fmplex_tools.bench.perf import TEXTS, Load, measure
from fmplex_tools.bench.perf_binary import perf_analyzer
from fmplex_tools.serving import fetch_status

ROUNDS = 3
PAIRS = 300
CLIENTS = {OURS: ours, THEIRS: theirs}
PROTOCOLS = ("http", "grpc")
Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class BenchPlan(FleetRun):
    """What is to be tried."""

    times: int = 10
    """Each kind of fault."""
    kinds: tuple[str, ...] = KINDS
    texts: int = 4
    clients: int = 8
    """Half of them ours, half Triton's own, each half by HTTP and gRPC by turns."""
    seconds: float = 6.0
    """Of each measurement of the door's price."""


def fleet(plan: BenchPlan, progress: Progress, noted: dict[str, Any]) -> Outcome:
    """Deploy it and try all of it; what the machine is goes into ``noted``."""
    with workplace() as place:
        line = progress.add_task("making vFMs", total=None)

        def tell(what: str) -> None:
            progress.update(line, description=what)

        deployed = Deployed(plan, place)
        texts = make_texts(plan.texts, plan.seed)
        names = [*deployed.names, *deployed.spare]
        tell("one machine's answers")
        with serving(deployed.repository) as (url, _):
            known = record(url, names, texts)
            noted["machine"] = fetch_status(url, plan.fm)["cost_model"]["device"]
        tell("starting the fleet")
        figures, details = [], {}
        with deployed.running():
            figures += _equal(deployed, texts, known, tell)
            loads = {
                whose: CheckedLoad(deployed.door, [*deployed.names[:-1]], texts, known, plan.seed, client=client)
                for whose, client in CLIENTS.items()
            }
            with contextlib.ExitStack() as going:
                for load in loads.values():
                    going.enter_context(load.going_on(plan.clients // 2, PROTOCOLS))
                noticed = go_through(deployed, loads, plan.kinds, plan.times, plan.seed, tell)
                figures += _changes(deployed, loads, tell)
            figures += [figure for own in noticed.values() if own.times for figure in own.figures()]
            details["noticed"] = as_details(noticed)
            figures += _price(deployed, plan.seconds, tell)
        progress.remove_task(line)
    return Outcome(figures, details)


def _equal(deployed: Deployed, texts: Sequence[str], known: Known, tell: Tell) -> list[Figure]:
    """The largest difference of any vFM's answers to those of one machine, by each client through the door."""
    part = f"{len(deployed.names)} vFMs on {deployed.run.nodes} nodes, through the door, to one machine's answers"
    largest = dict.fromkeys(itertools.product(CLIENTS, PROTOCOLS), 0.0)
    with contextlib.ExitStack() as opened:
        asks = {way: opened.enter_context(CLIENTS[way[0]](deployed.door, way[1])) for way in largest}
        for name in deployed.names:
            tell(f"answers of {name}")
            for number, text in enumerate(texts):
                for way, ask in asks.items():
                    found = float(np.abs(ask(name, text) - known[name, number]).max())
                    largest[way] = max(largest[way], found)
    return [Figure(part, ", ".join(way), value, "", "≤ 1e-4", value <= 1e-4) for way, value in largest.items()]


def _changes(deployed: Deployed, loads: Mapping[str, CheckedLoad], tell: Tell) -> list[Figure]:
    """vFMs come and go, and the hottest moves, under load: does a request fail?"""
    tell("adding, removing and moving")
    count = len(deployed.spare)
    part = f"{count} vFMs added, {count} removed, the hottest moved"
    stay = deployed.names[count:]
    for load in loads.values():
        load.names = stay[:-1]  # those that go are not asked any more
    time.sleep(1.0)
    for load in loads.values():
        load.begin()
    before = deployed.controller.status()["vfms"]
    hottest = stay[0]
    seconds = deployed.apply([*stay, *deployed.spare])
    for load in loads.values():
        load.names = [*stay[:-1], *deployed.spare]
    device = before[hottest][0]
    deployed.controller.drain(device, False)
    deployed.wait_settled()
    moved = deployed.controller.status()["vfms"][hottest]
    deployed.controller.drain(device, True)
    deployed.wait_settled()
    time.sleep(1.0)
    figures = [
        Figure(part, "as planned after", seconds, "s"),
        Figure(part, "the hottest is elsewhere", float(device not in moved), "", "1", device not in moved),
    ]
    for whose, load in loads.items():
        lost = load.lost.total()
        figures += [
            Figure(part, f"requests answered, {whose}", load.answered),
            Figure(part, "lost", lost, "", "0", lost == 0),
            Figure(part, "answered wrongly", load.wrong, "", "0", load.wrong == 0),
            Figure(part, "slowest request", load.slowest, "s"),
        ]
    return figures


def _price(deployed: Deployed, seconds: float, tell: Tell) -> list[Figure]:
    """At one of the servers and through the door: single requests by turns, then perf_analyzer by turns.

    A request of 20 ms leaves nothing of the door in the processor's caches, and takes longer by more than the door does
    from one second to the next: only pairs of requests tell them apart. What the door takes by itself is told by
    requests that the server answers without a forward pass, for a model's metadata.
    """
    binary = perf_analyzer()
    status = deployed.controller.status()
    # Of one server alone, so that both ways end at the same one.
    name = deployed.names[-1]
    keep = status["vfms"][name][0]
    report = status["devices"][keep]["report"]
    direct = {
        "http": f"{report['host']}:{report['ports']['http']}",
        "grpc": f"{report['host']}:{report['ports']['grpc']}",
    }
    figures = []
    for protocol in direct:
        urls = {"direct": direct[protocol], "door": deployed.door}
        tell(f"the door's price, {protocol}, {PAIRS} pairs of requests")
        with contextlib.ExitStack() as opened:
            asks = {way: opened.enter_context(theirs(url, protocol)) for way, url in urls.items()}
            took = _by_turns({way: partial(ask, name, "a good day to be here") for way, ask in asks.items()})
            looks = {
                way: opened.enter_context(TRITONS[protocol].InferenceServerClient(url)) for way, url in urls.items()
            }
            bare = _more(_by_turns({way: partial(client.get_model_metadata, name) for way, client in looks.items()}))
        more = _more(took)
        rows: dict[str, list[float]] = {"direct": [], "door": []}
        for number in range(ROUNDS):
            for way, url in (("direct", direct[protocol]), ("door", deployed.door)):
                tell(f"the door's price, {protocol}, {way}, round {number + 1}")
                # perf_analyzer asks for the statistics of all models, which only this vFM's server has.
                load = Load(name, url, protocol, 8, seconds=seconds, headers=(f"fmplex-vfm: {name}",))
                rows[way].append(measure(binary, load, TEXTS).rows_per_s)
        part = f"the door, {protocol}"
        ratio = statistics.median(b / a for a, b in zip(rows["direct"], rows["door"], strict=True))
        figures += [
            Figure(part, "p50 without it", 1e3 * statistics.median(took["direct"]), "ms"),
            Figure(part, f"p50 more through it, of {PAIRS} pairs of requests", more, "ms", "≤ 0.5 ms", more <= 0.5),
            Figure(part, f"… of {PAIRS} pairs without a forward pass between them", bare, "ms"),
            Figure(part, "rows/s through it, perf_analyzer, 8 at a time", ratio, "x", "≥ 0.95", ratio >= 0.95),
        ]
    return figures


def _more(took: Mapping[str, Sequence[float]]) -> float:
    """Milliseconds that a request takes longer through the door, in the median of the pairs."""
    return 1e3 * statistics.median(b - a for a, b in zip(took["direct"], took["door"], strict=True))


def _by_turns(asks: Mapping[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Seconds that each takes, one after the other."""
    took: dict[str, list[float]] = {way: [] for way in asks}
    for number in range(PAIRS):
        for way in sorted(asks, reverse=number % 2 == 1):
            begun = time.perf_counter()
            asks[way]()
            took[way].append(time.perf_counter() - begun)
    return took
