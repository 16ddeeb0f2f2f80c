"""How many tasks fit on the machine and still meet a latency target: found by search, each number really started."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from fmplex_backend.errors import FMplexError
from fmplex_tools.bench.compare.answers import summary
from fmplex_tools.bench.compare.comparison import replay
from fmplex_tools.bench.compare.deployments import DEPLOYMENTS
from fmplex_tools.bench.compare.plan import WARM
from fmplex_tools.bench.compare.started import Started, start
from fmplex_tools.bench.compare.workload import Workload, schedule

SPARE = 0.1
"""Part of the machine's memory that is not filled."""
ATTEMPTS = 3
HALVINGS = 2
"""Steps between the largest number that met the target and the least that did not."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """When so many tasks are not too many."""

    source: Path
    fm: str
    demand: float
    """Requests a second of each task, Poisson, mixed lengths."""
    p99_ms: float
    seconds: float
    most: int
    """No number beyond this is tried."""
    threads: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Trial:
    """One number of tasks."""

    tasks: int
    met: bool
    p99_ms: float | None
    """None where it was not started."""
    memory_bytes: int
    ready_seconds: float
    why: str
    """What stood in the way; empty where it met the target."""


def most_tasks(
    name: str, target: Target, first: int, note: Callable[[str], None], tell: Callable[[str], None]
) -> list[Trial]:
    """All that was tried, in that order: doubled from ``first`` until it fails, then halved into the gap.

    ``note`` is told what is tried, ``tell`` what came of it.
    """
    trials: list[Trial] = []

    def met(tasks: int) -> bool:
        note(f"{DEPLOYMENTS[name].title}: {tasks} tasks")
        trials.append(trial := _try(name, target, tasks, trials))
        p99 = "not loaded" if trial.p99_ms is None else f"p99 {trial.p99_ms:,.0f} ms"
        tell(f"{DEPLOYMENTS[name].title}: {tasks} tasks: {p99}, {f'too many: {trial.why}' if trial.why else 'good'}")
        return trial.met

    good, bad, tasks = 0, 0, min(first, target.most)
    while not bad:
        if not met(tasks):
            bad = tasks
        elif tasks == target.most:
            return trials
        else:
            good, tasks = tasks, min(2 * tasks, target.most)
    for _ in range(HALVINGS):
        if bad - good > 1:
            middle = (good + bad) // 2
            good, bad = (middle, bad) if met(middle) else (good, middle)
    return trials


def best(trials: list[Trial]) -> Trial | None:
    """The largest number that met the target."""
    return max((trial for trial in trials if trial.met), key=lambda trial: trial.tasks, default=None)


def _try(name: str, target: Target, tasks: int, before: list[Trial]) -> Trial:
    needed = _memory_needed(tasks, before)
    free = psutil.virtual_memory().available - SPARE * psutil.virtual_memory().total
    if needed > free:
        why = f"it would take about {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} are there"
        return Trial(tasks, False, None, round(needed), 0.0, why)
    try:
        with start(
            DEPLOYMENTS[name], target.source, target.fm, tasks, seed=target.seed, threads=target.threads
        ) as started:
            return _load(started, target, tasks)
    except FMplexError as error:
        return Trial(tasks, False, None, 0, 0.0, str(error))


def _load(started: Started, target: Target, tasks: int) -> Trial:
    """The best of a few loads, until one meets the target: what else the machine does only adds."""
    drawn = schedule(Workload(tasks=tasks, rate=target.demand * tasks, seconds=target.seconds, seed=target.seed))
    found: list[Trial] = []
    while not found or (len(found) < ATTEMPTS and not found[-1].met):
        with replay(started, target.seed) as load:
            figures = summary(load.open(drawn), warm=WARM, until=target.seconds)
        why = ""
        if figures.failed:
            why = f"{figures.failed} of {figures.requests} requests failed"
        elif figures.p99_ms > target.p99_ms:
            why = f"p99 {figures.p99_ms:,.0f} ms"
        found.append(Trial(tasks, not why, figures.p99_ms, started.memory(), started.ready_seconds, why))
    return min(found, key=lambda trial: (not trial.met, trial.p99_ms))


def _memory_needed(tasks: int, before: list[Trial]) -> float:
    """Bytes, along the line through the two largest that ran; 0 where there are not two."""
    ran = sorted({trial.tasks: trial.memory_bytes for trial in before if trial.p99_ms is not None}.items())[-2:]
    if len(ran) < 2:
        return 0.0
    (fewer, little), (more, much) = ran
    return much + (much - little) / (more - fewer) * (tasks - more)
