"""Many vFMs in few adapter slots: what 1,000 that are asked by Zipf's law cost beside as many as there are slots.

One server holds all of them; how many are asked varies. For each number N, the first N vFMs get an open-loop load that
is the same for all N, and after that as much as the server can take. Every round goes through all N, the other way
round each time, so that a drift of the machine favours none. Memory is that of the server with one vFM and with all,
after the same load on that one.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from fmplex_tools.bench.engine.fleet import copy_fm, fleet_of
from fmplex_tools.bench.engine.fleet_server import MEGA, machine, memory, workplace
from fmplex_tools.bench.engine.slots_report import Curve, Point, SlotsPlan, details_of, figures_of
from fmplex_tools.bench.engine.zipf import ZipfLoad, slot_hits
from fmplex_tools.bench.fair.arena import Arena, serve, wait_served
from fmplex_tools.bench.fair.bench import Figure, Outcome
from fmplex_tools.bench.fair.streams import OK, Traffic, latencies
from fmplex_tools.bench.stolen import undisturbed

TOKENS = (8, 16, 24, 32)
WARM_UP = 1.5


def slots(plan: SlotsPlan, progress: Progress, noted: dict[str, Any]) -> Outcome:
    """Measure; what the machine is goes into ``noted``."""
    plan.check()
    outcome = Outcome()
    fleet = fleet_of(plan.source, plan.fm, rank=plan.rank, seed=plan.seed)
    names = [fleet.name(index) for index in range(plan.total)]
    with workplace() as place:
        line = progress.add_task(f"making {plan.total} vFMs", total=plan.total)
        settings = {"adapter_slots": plan.slots, "threads": plan.threads, "ports": max(1024, plan.total)}
        copy_fm(place / "repository", plan.source, plan.fm, {key: str(value) for key, value in settings.items()})
        for index, name in enumerate(names):
            fleet.write_vfm((place / "beside" if index else place / "repository") / name, index)
            progress.update(line, completed=index + 1)
        progress.update(line, description="starting the server", total=None)
        with serve(place / "repository", plan.fm, names[:1]) as made:
            noted["machine"] = machine(made)
            progress.remove_task(line)
            _measure_memory(plan, made, place, names, progress, outcome)
            curves = _measure_curves(plan, made, names, progress, outcome)
    outcome.figures += figures_of(plan, curves)
    outcome.details |= details_of(plan, curves)
    return outcome


def _measure_memory(
    plan: SlotsPlan, made: Arena, place: Path, names: Sequence[str], progress: Progress, outcome: Outcome
) -> None:
    """Load all vFMs but the first, which is served already; memory before and after, each time under its load."""
    alone = _phase(plan, made, names[:1], "one vFM, before the others come", progress=progress, clients=plan.clients)
    before = memory(made)
    line = progress.add_task("loading vFMs", total=len(names))
    begun = time.monotonic()
    for name in names[1:]:
        os.rename(place / "beside" / name, place / "repository" / name)
    wait_served(made, names, lambda served: progress.update(line, completed=served))
    seconds = time.monotonic() - begun
    progress.remove_task(line)
    again = _phase(plan, made, names[:1], "the same vFM beside the others", progress=progress, clients=plan.clients)
    after = memory(made)
    added = len(names) - 1
    n_bytes = statistics.median(vfm["n_bytes"] for vfm in made.status()["vfms"])
    outcome.figures.append(Figure("memory", f"{added} vFMs loaded in", seconds, "s"))
    outcome.figures.append(Figure("memory", "a vFM's weights", n_bytes / MEGA, "MB"))
    for role in before:
        grown = {kind: (after[role][kind] - before[role][kind]) / added / MEGA for kind in ("pss", "rss")}
        unit = f"MB PSS ({grown['rss']:.3f} RSS)"
        outcome.figures.append(Figure("memory", f"{role}, for each vFM", grown["pss"], unit))
    outcome.details["memory"] = {"before": before, "after": after, "added": added, "seconds": seconds}
    outcome.details["one_vfm_rows_per_s"] = {"alone": alone.rate, "beside the others": again.rate}


def _measure_curves(
    plan: SlotsPlan, made: Arena, names: Sequence[str], progress: Progress, outcome: Outcome
) -> dict[int, Curve]:
    capacity = _phase(
        plan, made, names[: plan.slots], f"capacity, {plan.slots} vFMs", progress=progress, clients=plan.clients
    )
    offered = plan.load * capacity.rate
    outcome.figures.append(Figure("load", f"capacity with {plan.slots} vFMs", capacity.rate, "rows/s"))
    outcome.figures.append(Figure("load", "offered to every number of vFMs", offered, "rows/s"))
    counts = sorted(set(plan.counts))
    hits = slot_hits(plan.total, plan.exponent, plan.slots)
    title = f"of {plan.total} vFMs, the {plan.slots} asked most get"
    outcome.figures.append(Figure("load", title, 100 * hits, "% of the requests"))
    curves = {count: Curve() for count in counts}
    for turn in range(plan.rounds):
        for count in counts if turn % 2 == 0 else reversed(counts):
            title = f"round {turn + 1} of {plan.rounds}: {count} vFMs"
            phase = partial(_phase, plan, made, names[:count], progress=progress)
            curves[count].open.append(_quiet(partial(phase, f"{title}, open loop", rate=offered)))
            curves[count].saturated.append(_quiet(partial(phase, f"{title}, saturated", clients=plan.clients)))
    return curves


def _quiet(phase: Callable[[], Point]) -> Point:
    """A phase that the hypervisor did not disturb much; failures of all attempts count."""
    points = [point for _, point in undisturbed(phase)]
    failures = tuple(message for point in points for message in point.failures)
    return replace(points[0], failed=sum(point.failed for point in points), failures=failures)


def _phase(
    plan: SlotsPlan,
    made: Arena,
    names: Sequence[str],
    title: str,
    *,
    progress: Progress,
    rate: float = 0.0,
    clients: int = 0,
) -> Point:
    """Load on ``names`` for the plan's seconds, after a warm-up."""
    line = progress.add_task(title, total=WARM_UP + plan.seconds)
    try:
        load = ZipfLoad(made.url, names, plan.exponent, rate=rate, clients=clients, tokens=TOKENS, seed=plan.seed)
        with load:
            begun = load.start()
            start, end = begun + WARM_UP, begun + WARM_UP + plan.seconds
            while (now := time.monotonic()) < end:
                progress.update(line, completed=now - begun)
                time.sleep(min(0.25, end - now))
            return point_of(load.stop(), start, end)
    finally:
        progress.remove_task(line)


def point_of(traffic: Traffic, start: float, end: float) -> Point:
    """The requests that were due from ``start`` to ``end``; failures are those of the warm-up too."""
    names = [stream.vfm for stream in traffic.streams]
    done = traffic.of(names, OK, start)
    done = done[done["due"] < end]
    failed = int(np.sum(traffic.requests["outcome"] != OK))
    if not len(done):
        return Point(failed=failed, failures=traffic.failures)
    p50, p95, p99 = (1e3 * float(value) for value in np.percentile(latencies(done), (50, 95, 99)))
    return Point((p50, p95, p99), traffic.rate(names, start, end), len(done), failed, traffic.failures)
