"""vFMs that come and go beside others under steady load: what the others notice, and how soon a new one answers.

One load runs throughout: open loop, on vFMs that are left alone. Windows without and with changes follow each other
several times; with changes, each second one vFM is added and one that was added before is removed. A new vFM is made
whole before all windows, beside the repository, and moved in by one rename: what making it costs is not what serving it
costs. From then on its endpoint is asked every 50 ms.
"""

from __future__ import annotations

import contextlib
import math
import os
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as grpc
from numpy.typing import NDArray
from rich.progress import Progress
from tritonclient.utils import InferenceServerException

from fmplex_tools.bench.engine.fleet import Fleet, FleetPlan, copy_fm, fleet_of
from fmplex_tools.bench.engine.fleet_server import machine, workplace
from fmplex_tools.bench.engine.report import SERIES
from fmplex_tools.bench.fair.arena import serve
from fmplex_tools.bench.fair.bench import Figure, Outcome
from fmplex_tools.bench.fair.load import Load
from fmplex_tools.bench.fair.streams import OK, Stream, Traffic, latencies

TOKENS = (8, 16, 24, 32)
SETTLE = 1.0
"""Seconds at the start of a window that do not count: what the window before it caused."""
EVERY = 1.0
"""Seconds between changes."""
ASK_EVERY = 0.05
KEPT = 3
"""Added vFMs that stay before the oldest of them is removed: it must have answered."""
GIVE_UP = 30.0
RATIO_GOAL = 1.1
FIRST_ANSWER_GOAL = 2.0
LOAD = 0.6
QUIET, CHANGING = "quiet", "changing"


@dataclass(frozen=True, kw_only=True)
class ReloadPlan(FleetPlan):
    """What is to be measured; ``seconds`` are of each window."""

    seconds: float = 15.0
    vfms: int = 16
    pairs: int = 4
    """Windows without changes, each followed by one with."""
    load: float = LOAD


@dataclass(frozen=True)
class Window:
    """A span of the load, on the monotonic clock."""

    kind: str
    start: float
    end: float


@dataclass
class Changes:
    """Adds vFMs to ``repository`` and removes them again, and asks each new one until it answers."""

    fleet: Fleet
    repository: Path
    beside: Path
    url: str
    first: int
    """Index of the first one that is added; those before it are left alone."""
    ports: int
    seconds_to_answer: list[float] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)
    """What was never answered, or by another."""
    removed: int = 0
    _added: int = 0
    _there: deque[str] = field(default_factory=deque)
    _askers: list[threading.Thread] = field(default_factory=list)

    def prepare(self, count: int) -> None:
        """Make the next ``count`` vFMs."""
        for number in range(self._added, self._added + count):
            index, port = self.first + number, self.first + number % (self.ports - self.first)
            self.fleet.write_vfm(self.beside / self.fleet.name(index), index, port=port)

    def change(self) -> None:
        """Add one vFM that was prepared; remove the oldest of those added, once more than `KEPT` are there."""
        name = self.fleet.name(self.first + self._added)
        os.rename(self.beside / name, self.repository / name)
        asker = threading.Thread(target=self._ask, args=(name, time.monotonic()), name=f"ask {name}")
        asker.start()
        self._askers.append(asker)
        self._there.append(name)
        self._added += 1
        if len(self._there) > KEPT:
            self._remove()

    def _remove(self) -> None:
        name = self._there.popleft()
        os.rename(self.repository / name, self.beside / f"{name}.removed")
        self.removed += 1

    def _ask(self, name: str, begun: float) -> None:
        tensor = grpc.InferInput("text", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[b"good film"]], dtype=object))
        with grpc.InferenceServerClient(self.url) as client:
            last = "no answer"
            while time.monotonic() < begun + GIVE_UP:
                asked = time.monotonic()
                try:
                    reply = client.infer(name, [tensor], client_timeout=GIVE_UP)
                except InferenceServerException as error:
                    last = str(error)
                    time.sleep(max(0.0, asked + ASK_EVERY - time.monotonic()))
                    continue
                info = reply.as_numpy("info")[0, 0].decode()
                if f'"vfm": "{name}"' not in info:
                    self.silent.append(f"{name}: answered by another: {info}")
                else:
                    self.seconds_to_answer.append(time.monotonic() - begun)
                return
        self.silent.append(f"{name}: {last}")

    def close(self) -> None:
        """Remove what was added and wait for those who ask."""
        for asker in self._askers:
            asker.join()
        while self._there:
            self._remove()


@contextlib.contextmanager
def _closed(changes: Changes) -> Iterator[Changes]:
    try:
        yield changes
    finally:
        changes.close()


def reload(plan: ReloadPlan, progress: Progress, noted: dict[str, Any]) -> Outcome:
    """Measure; what the machine is goes into ``noted``."""
    fleet = fleet_of(plan.source, plan.fm, rank=plan.rank, seed=plan.seed)
    names = [fleet.name(index) for index in range(plan.vfms)]
    with workplace() as place:
        line = progress.add_task("starting the server", total=None)
        settings = {"adapter_slots": str(plan.slots), "threads": str(plan.threads)}
        taken = copy_fm(place / "repository", plan.source, plan.fm, settings)
        for index, name in enumerate(names):
            fleet.write_vfm(place / "repository" / name, index)
        with serve(place / "repository", plan.fm, names) as made:
            noted["machine"] = machine(made)
            progress.remove_task(line)
            capacity = _capacity(plan, made.url, names, progress)
            rate = plan.load * capacity / plan.vfms
            streams = [Stream(name, TOKENS, rate=rate, poisson=True) for name in names]
            changes = Changes(fleet, place / "repository", place / "beside", made.url, plan.vfms, taken.ports)
            changes.prepare(plan.pairs * math.ceil((SETTLE + plan.seconds) / EVERY))
            with _closed(changes), Load(made.url, streams, seed=plan.seed) as load:
                load.start()
                windows = _windows(plan, changes.change, progress)
                traffic = load.stop()
    outcome = outcome_of(traffic, windows, changes)
    title = f"on {plan.vfms} vFMs, {plan.load:.0%} of the capacity"
    outcome.figures.insert(0, Figure("load", title, plan.load * capacity, "rows/s"))
    return outcome


def _capacity(plan: ReloadPlan, url: str, names: list[str], progress: Progress) -> float:
    """Rows a second of ``names`` together, when all of them always have rows waiting."""
    line = progress.add_task("capacity", total=SETTLE + plan.seconds / 2)
    streams = [Stream(name, TOKENS, in_flight=8) for name in names]
    with Load(url, streams, seed=plan.seed) as load:
        begun = load.start()
        end = begun + SETTLE + max(2.0, plan.seconds / 2)
        while (now := time.monotonic()) < end:
            progress.update(line, completed=now - begun)
            time.sleep(0.25)
        traffic = load.stop()
    progress.remove_task(line)
    return traffic.rate(names, begun + SETTLE, end)


def _windows(plan: ReloadPlan, change: Callable[[], None], progress: Progress) -> list[Window]:
    windows = []
    line = progress.add_task("", total=2 * plan.pairs * plan.seconds)
    for number in range(2 * plan.pairs):
        kind = CHANGING if number % 2 else QUIET
        progress.update(line, description=f"{kind}, {number // 2 + 1} of {plan.pairs}")
        begun = time.monotonic()
        end, next_change = begun + SETTLE + plan.seconds, begun
        while (now := time.monotonic()) < end:
            if kind == CHANGING and now >= next_change:
                change()
                next_change += EVERY
            progress.update(line, completed=number * plan.seconds + max(0.0, now - begun - SETTLE))
            time.sleep(0.05)
        windows.append(Window(kind, begun + SETTLE, end))
    progress.remove_task(line)
    return windows


def outcome_of(traffic: Traffic, windows: list[Window], changes: Changes) -> Outcome:
    """Figures of the others, with and without changes, and of those that came."""
    outcome = Outcome()
    of_window = [_within(traffic, window) for window in windows]
    percentiles: dict[str, dict[str, float]] = {}
    for kind in (QUIET, CHANGING):
        seconds = np.concatenate([found for found, w in zip(of_window, windows, strict=True) if w.kind == kind])
        p50, p95, p99 = (1e3 * float(value) for value in np.percentile(seconds, (50, 95, 99)))
        percentiles[kind] = {"p50": p50, "p95": p95, "p99": p99}
        outcome.figures.append(Figure("the others", f"{kind}: p50 of {len(seconds):,}", p50, "ms"))
        outcome.figures.append(Figure("the others", f"{kind}: p99", p99, "ms"))
    p99s = [1e3 * float(np.percentile(found, 99)) for found in of_window]
    ratio = percentiles[CHANGING]["p99"] / percentiles[QUIET]["p99"]
    by_pair = [after / before for before, after in zip(p99s[::2], p99s[1::2], strict=True)]
    unit = f"× (median of pairs {statistics.median(by_pair):.3g})"
    good = ratio <= RATIO_GOAL
    outcome.figures.append(
        Figure("the others", "p99 with changes, to without", ratio, unit, f"≤ {RATIO_GOAL:g}×", good)
    )
    asked, failed = len(traffic.requests), int(np.sum(traffic.requests["outcome"] != OK))
    outcome.figures.append(Figure("the others", f"failed, of {asked:,}", failed, "", "0", failed == 0))
    outcome.figures += _of_those_that_came(changes)
    outcome.details = {
        SERIES: {"p99 of the others, ms": {QUIET: p99s[::2], CHANGING: p99s[1::2]}},
        "percentiles_ms": percentiles,
        "p99_by_pair": by_pair,
        "seconds_to_first_answer": [round(seconds, 4) for seconds in changes.seconds_to_answer],
        "silent": changes.silent,
        "failures": list(traffic.failures),
    }
    if changes.seconds_to_answer:
        outcome.details[SERIES]["seconds until a new vFM answers"] = {"added": changes.seconds_to_answer}
    return outcome


def _within(traffic: Traffic, window: Window) -> NDArray[Any]:
    names = [stream.vfm for stream in traffic.streams]
    done = traffic.of(names, OK, window.start)
    return latencies(done[done["due"] < window.end])


def _of_those_that_came(changes: Changes) -> list[Figure]:
    seconds, part = changes.seconds_to_answer, f"{len(changes.seconds_to_answer)} added, {changes.removed} removed"
    figures = []
    if seconds:
        figures.append(Figure(part, "renamed in until answered, p50", statistics.median(seconds), "s"))
        good = max(seconds) <= FIRST_ANSWER_GOAL
        figures.append(
            Figure(part, "renamed in until answered, longest", max(seconds), "s", f"≤ {FIRST_ANSWER_GOAL:g} s", good)
        )
    figures.append(Figure(part, "never answered, or by another", len(changes.silent), "", "0", not changes.silent))
    return figures
