"""What a record says: FMplex against each other deployment, goals, and where FMplex is worse. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fmplex_tools.bench.compare.deployments import DEPLOYMENTS, title_of
from fmplex_tools.bench.compare.plan import LOADS
from fmplex_tools.bench.compare.records import Cell, Record, Standing
from fmplex_tools.bench.fair.bench import Figure

OURS = "fmplex"
NOTICED = 1.02
"""A ratio beyond this counts as worse; below it is noise."""
SPATIAL, SPATIAL_TASKS, SPATIAL_GOAL = "spatial", (8, 16), 0.1
CO_LOCATED, CO_LOCATED_GOALS = "best_effort", {"light": 1.05, "middle": 0.5, "heavy": 0.5}


@dataclass(frozen=True)
class Measure:
    """One figure of a cell; more is worse unless ``higher``."""

    title: str
    unit: str
    of: Callable[[Cell], float]
    higher: bool = False


MEAN = Measure("mean latency", "ms", lambda cell: cell.summary.mean_ms)
P99 = Measure("p99 latency", "ms", lambda cell: cell.summary.p99_ms)
RATE = Measure("answers a second", "/s", lambda cell: cell.summary.answered_per_s, higher=True)
FAILED = Measure("requests failed", "", lambda cell: cell.summary.failed)
CPU = Measure("processor seconds for 1,000 answers", "s", lambda cell: cell.cpu_seconds_per_1000)
MEASURES = (MEAN, P99, RATE, FAILED, CPU)
STANDINGS: tuple[tuple[str, str, Callable[[Standing], float | None]], ...] = (
    ("memory", "GB", lambda standing: standing.memory_bytes / 1e9),
    ("time to ready", "s", lambda standing: standing.ready_seconds),
    ("time to add a task", "s", lambda standing: standing.add_seconds),
)


class Table:
    """A record by deployment, tasks and case; medians over the rounds."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self.rounds = len({cell.round for cell in record.cells})
        self.tasks = sorted({cell.tasks for cell in record.cells})
        self.deployments = [name for name in DEPLOYMENTS if any(s.deployment == name for s in record.standings)]

    def cases(self, tasks: int) -> list[str]:
        """In the order they were measured."""
        return list(dict.fromkeys(cell.case for cell in self._record.cells if cell.tasks == tasks))

    def cells(self, deployment: str, tasks: int, case: str) -> list[Cell]:
        """One a round."""
        wanted = (deployment, tasks, case)
        return [cell for cell in self._record.cells if (cell.deployment, cell.tasks, cell.case) == wanted]

    def value(self, measure: Measure, deployment: str, tasks: int, case: str) -> float:
        """Median over the rounds, NaN where there is none."""
        return _median(measure.of(cell) for cell in self.cells(deployment, tasks, case))

    def spread(self, measure: Measure, deployment: str, tasks: int, case: str) -> float:
        """(largest − least) / median over the rounds; NaN with fewer than two."""
        values = [measure.of(cell) for cell in self.cells(deployment, tasks, case)]
        return (max(values) - min(values)) / statistics.median(values) if len(values) > 1 else math.nan

    def standing(self, of: Callable[[Standing], float | None], deployment: str, tasks: int) -> float:
        """Median over the rounds, NaN where there is none."""
        found = [s for s in self._record.standings if (s.deployment, s.tasks) == (deployment, tasks)]
        values = [value for s in found if (value := of(s)) is not None]
        return _median(iter(values))

    def ratio(self, measure: Measure, other: str, tasks: int, case: str) -> float:
        """Of ours to ``other``'s."""
        theirs = self.value(measure, other, tasks, case)
        return self.value(measure, OURS, tasks, case) / theirs if theirs else math.nan


def figures_of(record: Record) -> list[Figure]:
    """Every mean latency, and the goals."""
    table = Table(record)
    figures = []
    for tasks in table.tasks:
        for case in table.cases(tasks):
            for name in table.deployments:
                if table.cells(name, tasks, case):
                    rate, p99 = (table.value(measure, name, tasks, case) for measure in (RATE, P99))
                    failed = sum(cell.summary.failed for cell in table.cells(name, tasks, case))
                    told = f"ms, p99 {p99:,.0f}; {rate:.1f}/s" + (f"; {failed} failed" if failed else "")
                    mean = table.value(MEAN, name, tasks, case)
                    figures.append(Figure(f"{tasks} tasks, {case}", title_of(name), mean, told))
    if OURS in table.deployments:
        figures += list(_goals(table))
    for failure in record.failures:
        figures.append(
            Figure(
                "not measured",
                f"{failure.deployment}, {failure.tasks} tasks",
                math.nan,
                failure.reason,
                "measured",
                False,
            )
        )
    return figures


def _goals(table: Table) -> Iterator[Figure]:
    part = "FMplex's mean latency, of that of"
    for tasks in table.tasks:
        for case in LOADS:
            if SPATIAL in table.deployments and tasks in SPATIAL_TASKS:
                found = table.ratio(MEAN, SPATIAL, tasks, case)
                title = f"spatial partitioning, {tasks} tasks, {case}"
                yield Figure(part, title, found, "×", f"≤ {SPATIAL_GOAL:g}×", found <= SPATIAL_GOAL)
            if CO_LOCATED in table.deployments:
                found, goal = table.ratio(MEAN, CO_LOCATED, tasks, case), CO_LOCATED_GOALS[case]
                title = f"best-effort co-location, {tasks} tasks, {case}"
                yield Figure(part, title, found, "×", f"≤ {goal:g}×", found <= goal)


def worse(record: Record) -> list[str]:
    """Where FMplex is worse than another deployment, a sentence each; the largest differences first."""
    table = Table(record)
    found: list[tuple[float, str]] = []
    for other in table.deployments:
        if other == OURS:
            continue
        for tasks in table.tasks:
            for case in table.cases(tasks):
                for measure in MEASURES:
                    ours, theirs = (table.value(measure, name, tasks, case) for name in (OURS, other))
                    ratio = theirs / ours if measure.higher and ours else ours / theirs if theirs else math.nan
                    if ratio > NOTICED or (not theirs and ours > 0 and not measure.higher):
                        told = f"{ours:.4g} against {theirs:.4g} {measure.unit}".rstrip()
                        found.append((ratio, f"{measure.title}, {tasks} tasks, {case}: {told} of {title_of(other)}"))
            for title, unit, of in STANDINGS:
                ours, theirs = (table.standing(of, name, tasks) for name in (OURS, other))
                if ours > NOTICED * theirs:
                    told = f"{ours:.3g} against {theirs:.3g} {unit}"
                    found.append((ours / theirs, f"{title}, {tasks} tasks: {told} of {title_of(other)}"))
    return [sentence for _, sentence in sorted(found, key=lambda pair: -pair[0])]


def _median(values: Iterator[float]) -> float:
    kept = [value for value in values if not math.isnan(value)]
    return statistics.median(kept) if kept else math.nan
