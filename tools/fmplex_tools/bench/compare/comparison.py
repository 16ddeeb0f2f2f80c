"""The comparison itself: each deployment after the other on the same machine, under the same loads.

1. For each number of tasks every deployment is started alone: right answers, memory, time to ready and for a task more.
2. Then all are up, all but one of them stopped, and take turns: each load on each of them, as many times as there are
   rounds. What comes over the machine in minutes so comes over all.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np
from rich.progress import Progress, TaskID

from fmplex_backend.arrays import Array
from fmplex_backend.errors import EngineFailure, FMplexError
from fmplex_tools.bench.compare import parity
from fmplex_tools.bench.compare.answers import LATE, OK, Answers, cdf, summary
from fmplex_tools.bench.compare.deployments import DEPLOYMENTS
from fmplex_tools.bench.compare.plan import FLOOD, REFERENCE, WARM, Case, Plan
from fmplex_tools.bench.compare.records import Cell, Failure, Record, Standing
from fmplex_tools.bench.compare.replayer import Replay
from fmplex_tools.bench.compare.started import Started, add_task, start
from fmplex_tools.bench.compare.turns import Turns
from fmplex_tools.bench.compare.workload import Lengths, Workload, digest, schedule
from fmplex_tools.bench.stolen import ATTEMPTS, STOLEN, Stolen

CAPACITY_CLIENTS = (8, 16, 32, 64, 128)
"""Of so many at a time, in a closed loop: with too many, private copies do less than with some."""
CAPACITY_SECONDS = 5.0
POINTS = 50


@dataclass
class Comparison:
    """One run under way."""

    plan: Plan
    progress: Progress
    record: Record = field(default_factory=Record)
    keep: Callable[[Record], None] = lambda _: None
    """Gets the record whenever there is more in it: an hour's work is not lost by whatever comes."""
    _expected: dict[int, list[Array]] = field(default_factory=dict)
    """Number of tasks → what each must answer to `parity.TEXTS`."""

    def run(self) -> Record:
        """Measure everything; a deployment that fails is a `Failure`, and the others go on."""
        self.plan.check()
        for tasks in self.plan.tasks:
            line = self.progress.add_task("", total=len(self.plan.deployments))
            for name in self.plan.order(0):
                with self._noting(name, tasks):
                    self._stand(name, tasks, line)
                self.progress.advance(line)
                if name == REFERENCE and key(tasks, "mixed") not in self.record.capacity:
                    why = self.record.failures[-1].reason
                    raise EngineFailure(f"{why}; without it, nobody knows what a middle load is")
            self.progress.remove_task(line)
            self._load(tasks)
        return self.record

    @contextlib.contextmanager
    def _noting(self, name: str, tasks: int, number: int = 0) -> Iterator[None]:
        try:
            yield
        except FMplexError as error:
            self.record.failures.append(Failure(name, tasks, number, str(error)))

    def _started(self, name: str, tasks: int) -> AbstractContextManager[Started]:
        plan = self.plan
        return start(DEPLOYMENTS[name], plan.source, plan.fm, tasks, seed=plan.seed, threads=plan.threads)

    def _stand(self, name: str, tasks: int, line: TaskID) -> None:
        """What a deployment is without load, while no other one runs; of the reference also the most it can do."""
        title = f"{DEPLOYMENTS[name].title}, {tasks} tasks"
        self.progress.update(line, description=f"{title}: starting")
        with self._started(name, tasks) as started:
            self.progress.update(line, description=f"{title}: are the answers right?")
            difference = parity.check(started, expected=self._answers(started, tasks))
            if name == REFERENCE:
                for lengths in self.plan.lengths(tasks):
                    self.progress.update(line, description=f"{title}: the most it can do, {lengths} rows")
                    self.record.capacity[key(tasks, lengths)] = self._capacity(started, tasks, lengths)
            memory = started.memory()
            self.progress.update(line, description=f"{title}: one task more")
            added = add_task(started)
            fence = started.fences.how if started.fences else ""
            self.record.standings.append(
                Standing(name, tasks, 0, fence, started.ready_seconds, added, memory, difference)
            )

    def _load(self, tasks: int) -> None:
        """All loads, on all deployments by turns: a machine that is slower for a while is so for all of them.

        All are up at the same time, and all but one stopped in their tracks.
        """
        names = [s.deployment for s in self.record.standings if s.tasks == tasks]
        kinds = self.plan.lengths(tasks)
        cases = self.plan.cases(tasks, {kind: self.record.capacity[key(tasks, kind)] for kind in kinds})
        line = self.progress.add_task("", total=len(names) * (1 + len(cases) * self.plan.rounds))
        with Turns(lambda name: self._started(name, tasks)) as turns:
            for name in names:
                self.progress.update(line, advance=1, description=f"{DEPLOYMENTS[name].title}, {tasks} tasks: starting")
                with self._noting(name, tasks):
                    turns.start(name)
            for case in cases:
                for number in range(self.plan.rounds):
                    for name in self.plan.order(number):
                        if name in turns:
                            title = f"{DEPLOYMENTS[name].title}, {tasks} tasks: {case.name}"
                            self.progress.update(line, advance=1, description=title)
                            with self._noting(name, tasks, number):
                                self._turn(turns, name, tasks, number, case)
                self.keep(self.record)
        self.progress.remove_task(line)

    def _turn(self, turns: Turns, name: str, tasks: int, number: int, case: Case) -> None:
        """One load; what counts is the least disturbed of a few attempts."""
        found: list[Cell] = []
        try:
            while not found or (found[-1].stolen > STOLEN and len(found) < ATTEMPTS):
                with turns.turn(name) as started:
                    cell, overloaded = self._attempt(started, tasks, number, case)
                found.append(cell)
                if overloaded:  # what it has left would be in the way of the next load, though nobody waits for it
                    turns.again(name)
        except EngineFailure:
            if name in turns:  # else it was this that failed
                turns.again(name)
            raise
        finally:
            if found:
                self.record.cells.append(min(found, key=lambda cell: cell.stolen))

    def _answers(self, started: Started, tasks: int) -> list[Array]:
        if tasks not in self._expected:
            repository = started.repository
            versions = [repository.version(task) for task in range(tasks)]
            self._expected[tasks] = parity.reference(repository.backbone, versions)
        return self._expected[tasks]

    def _capacity(self, started: Started, tasks: int, lengths: Lengths) -> float:
        """The most requests a second that any number of clients gets answered, closed loop."""
        drawn = schedule(Workload(tasks=tasks, rate=400.0, seconds=20.0, seed=self.plan.seed, lengths=lengths))
        best = 0.0
        for clients in CAPACITY_CLIENTS:
            with replay(started, self.plan.seed) as load:
                answers = load.closed(drawn, clients, WARM + CAPACITY_SECONDS, drain=60.0)
            best = max(best, summary(answers, warm=WARM, until=WARM + CAPACITY_SECONDS).answered_per_s)
        return best

    def _attempt(self, started: Started, tasks: int, number: int, case: Case) -> tuple[Cell, bool]:
        """One load, and whether requests were given up."""
        made = schedule(case.workload)
        watch, spent = Stolen(), started.cpu_seconds()
        with replay(started, self.plan.seed) as load:
            answers = load.open(made)
        spent, stolen = started.cpu_seconds() - spent, watch.part()
        until = case.workload.seconds
        flooder = None
        if case.name == FLOOD:
            flooder = summary(only(answers, [0]), warm=WARM, until=until)
        others = only(answers, range(1, tasks)) if flooder else answers
        answered = int((answers.requests["outcome"] == OK).sum())
        cell = Cell(
            deployment=started.deployment.name,
            tasks=tasks,
            round=number,
            case=case.name,
            load=case.part,
            digest=digest(made),
            summary=summary(others, warm=WARM, until=until),
            flooder=flooder,
            cpu_seconds_per_1000=1000 * spent / answered if answered else np.nan,
            stolen=stolen,
            cdf=tuple(cdf(others, POINTS, warm=WARM, until=until)),
            per_second=per_second(others, until),
        )
        return cell, bool((answers.requests["outcome"] == LATE).any())


def key(tasks: int, lengths: str) -> str:
    """Of `Record.capacity`."""
    return f"{tasks} {lengths}"


def replay(started: Started, seed: int) -> Replay:
    """A load process for a deployment."""
    made = started.repository
    return Replay(started.url, made.models, made.selector, made.tasks, seed=seed)


def only(answers: Answers, tasks: Sequence[int]) -> Answers:
    """The requests of these tasks."""
    return dataclasses.replace(answers, requests=answers.requests[np.isin(answers.requests["task"], list(tasks))])


def per_second(answers: Answers, seconds: float) -> tuple[int, ...]:
    """Answers, no errors, in each whole second."""
    ended = answers.requests["ended"][answers.requests["outcome"] == OK] - answers.begun
    counts, _ = np.histogram(ended, bins=np.arange(0.0, seconds + 1.0))
    return tuple(int(count) for count in counts)
