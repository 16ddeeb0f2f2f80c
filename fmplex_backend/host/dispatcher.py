"""Owns the queue and the engines: takes rows in, runs batches, hands answers out.

One lock guards the queue, the counters of generations and the requests under way. Decisions are made under it; waiting
for an engine, replying and reading files happen outside. One thread an engine starts it, feeds it and restarts it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from fmplex_backend.backbones.facts import BackboneFacts
from fmplex_backend.errors import DeadlineExceeded, EngineFailure, FMplexError, Unavailable
from fmplex_backend.host.engine_process import EngineDied, EngineProcess
from fmplex_backend.host.generations import Generation
from fmplex_backend.host.requests import Pending, RowAnswer, RowTask
from fmplex_backend.messages import (
    BatchDone,
    DropGeneration,
    GenerationDropped,
    GenerationLoaded,
    LoadGeneration,
    RunBatch,
)
from fmplex_backend.scheduling.interface import Batch, Queue, Row, VfmPolicy

START_TIMEOUT = 300.0
ANSWER_TIMEOUT = 120.0
MAX_DEATHS = 2
"""A row that was in flight when this many engines died is answered with an error instead of being run again."""


@dataclass
class _Lane:
    """One engine, its thread and what it is to do besides batches."""

    engine: EngineProcess
    commands: deque[tuple[LoadGeneration | DropGeneration, Future[Any]]] = field(default_factory=deque)
    live: dict[int, LoadGeneration] = field(default_factory=dict)
    """The generations that it holds, for its successor."""
    thread: threading.Thread | None = None
    starts: int = 0


class Dispatcher:
    """See the module. ``finished`` is called, outside the lock, with every request whose reply can be made."""

    def __init__(
        self,
        queue: Queue,
        engines: Sequence[EngineProcess],
        finished: Callable[[Pending], None],
        log: Callable[[str], None],
    ) -> None:
        self._queue = queue
        self._lanes = [_Lane(engine) for engine in engines]
        self._finished = finished
        self._log = log
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._stopping = False

    # ---- life ----

    def start(self) -> BackboneFacts:
        """Start every engine and wait until all are ready. Raises `EngineFailure` with the first reason."""
        ready: list[Future[BackboneFacts]] = []
        for lane in self._lanes:
            future: Future[BackboneFacts] = Future()
            lane.thread = threading.Thread(
                target=self._run_lane, args=(lane, future), name=f"engine {lane.engine.device}"
            )
            lane.thread.start()
            ready.append(future)
        try:
            facts = [future.result() for future in ready]
        except FMplexError:
            self.stop()
            raise
        return facts[0]

    def stop(self) -> None:
        """End the engines and join their threads; what still waits is answered UNAVAILABLE."""
        with self._lock:
            self._stopping = True
            self._work.notify_all()
        for lane in self._lanes:
            if lane.thread is not None:
                lane.thread.join()

    @property
    def engine_pids(self) -> list[int | None]:
        """Process ids of the engines."""
        return [lane.engine.pid for lane in self._lanes]

    # ---- vFMs and generations ----

    def set_policy(self, vfm: str, policy: VfmPolicy, *, new: bool) -> None:
        """Make a vFM known to the queue, or change its policy; acts on the next decision."""
        with self._lock:
            (self._queue.add_vfm if new else self._queue.change_vfm)(vfm, policy)

    def remove_vfm(self, vfm: str) -> None:
        """Take no more rows of ``vfm``; those that wait are run."""
        with self._lock:
            self._queue.remove_vfm(vfm)

    def load(self, generation: Generation) -> GenerationLoaded:
        """Load on every engine, between batches; the first refusal takes it back from all."""
        message = LoadGeneration(generation.number, generation.vfm, generation.version, str(generation.path))
        answers: list[GenerationLoaded] = [f.result() for f in self._tell_all(message)]
        refused = next((a for a in answers if a.error is not None), None)
        if refused is None:
            return answers[0]
        for answer, lane in zip(answers, self._lanes, strict=True):
            if answer.error is None:
                self._tell(lane, DropGeneration(generation.number))
        return refused

    def retire(self, generation: Generation) -> None:
        """Take no more rows of ``generation``; it is dropped from the engines once its last row is answered."""
        with self._lock:
            generation.retired = True
            drop = generation.rows == 0
        if drop:
            self._drop(generation)

    def _drop(self, generation: Generation) -> None:
        generation.path.unlink(missing_ok=True)
        self._tell_all(DropGeneration(generation.number))

    def _tell_all(self, message: LoadGeneration | DropGeneration) -> list[Future[Any]]:
        return [self._tell(lane, message) for lane in self._lanes]

    def _tell(self, lane: _Lane, message: LoadGeneration | DropGeneration) -> Future[Any]:
        future: Future[Any] = Future()
        with self._lock:
            if self._stopping:
                future.set_exception(Unavailable("the physical FM is shutting down"))
                return future
            lane.commands.append((message, future))
            self._work.notify_all()
        return future

    # ---- rows ----

    def submit(self, request: Pending, rows: Sequence[list[Row]]) -> bool:
        """Queue a request's rows, one list a member, all or none; False where a generation was retired meanwhile.

        Raises `QueueFull` of the scheduling interface, and `Unavailable` at shutdown.
        """
        now = time.monotonic()
        with self._lock:
            if self._stopping:
                raise Unavailable("the physical FM is shutting down")
            if any(member.generation.retired for member in request.members):
                return False
            for group in rows:
                try:
                    self._queue.submit(group, now)
                except Exception:
                    for row in request.rows:
                        self._cancel(row)
                    raise
                request.rows.extend(group)
                request.remaining += len(group)
                group[0].payload.member.generation.rows += len(group)
            self._work.notify()
        return True

    def waiting(self, vfm: str) -> int:
        """Rows of ``vfm`` that wait."""
        with self._lock:
            return self._queue.waiting(vfm)

    def _cancel(self, row: Row) -> None:
        if self._queue.cancel(row):
            row.payload.member.generation.rows -= 1

    def _fail(self, row: Row, error: FMplexError, done: list[Pending]) -> None:
        """Under the lock: end ``row`` with ``error``, and with it its request and the request's rows that wait."""
        task: RowTask = row.payload
        task.member.generation.rows -= 1
        if task.request.fail(error):
            done.append(task.request)
            for other in task.request.rows:
                self._cancel(other)

    def _settle(self, done: list[Pending], touched: set[Generation]) -> None:
        """Outside the lock: reply, and drop the generations whose last row this was."""
        for request in done:
            self._finished(request)
        for generation in touched:
            with self._lock:
                drop = generation.retired and generation.rows == 0
                if drop:
                    generation.rows = -1  # once only
            if drop:
                self._drop(generation)

    # ---- one engine's thread ----

    def _run_lane(self, lane: _Lane, ready: Future[BackboneFacts]) -> None:
        try:
            ready.set_result(lane.engine.start(START_TIMEOUT).facts)
        except FMplexError as error:
            ready.set_exception(error)
            return
        while (work := self._next(lane)) is not None:
            try:
                if isinstance(work, Batch):
                    self._run(lane, work)
                else:
                    self._command(lane, *work)
            except EngineDied as error:
                self._log(f"{error}; starting a new one")
                if isinstance(work, Batch):
                    self._put_back(work, error)
                else:
                    with self._lock:
                        lane.commands.appendleft(work)
                if not self._restart(lane):
                    break
        self._end(lane)

    def _next(self, lane: _Lane) -> Batch | tuple[LoadGeneration | DropGeneration, Future[Any]] | None:
        """Wait for work: commands first, then batches; None to stop."""
        while True:
            done: list[Pending] = []
            touched: set[Generation] = set()
            with self._lock:
                if self._stopping:
                    return None
                if lane.commands:
                    return lane.commands.popleft()
                decision = self._queue.next_batch(time.monotonic())
                for row in decision.expired:
                    waited = (time.monotonic() - row.submitted) * 1e3
                    late = f"vFM {row.vfm!r}: the deadline passed after {waited:.0f} ms in the queue; it was not run"
                    self._fail(row, DeadlineExceeded(late), done)
                    touched.add(row.payload.member.generation)
                if decision.batch is None and not done:
                    self._work.wait()
            self._settle(done, touched)
            if decision.batch is not None:
                return decision.batch

    def _run(self, lane: _Lane, batch: Batch) -> None:
        tasks: list[RowTask] = [row.payload for row in batch.rows]
        started = time.monotonic()
        message = RunBatch(batch.number, [t.member.generation.number for t in tasks], [t.encoded.tokens for t in tasks])
        answer = lane.engine.call(message, BatchDone, ANSWER_TIMEOUT)
        places = sorted(place for group in answer.groups for place in group.rows)
        if answer.batch != batch.number or places != list(range(len(tasks))):
            lane.engine.kill()
            raise EngineDied(f"engine on {lane.engine.device}: answered rows {places} of {len(tasks)}")
        done: list[Pending] = []
        with self._lock:
            self._queue.complete(batch, answer.seconds, time.monotonic())
            for group in answer.groups:
                for index, place in enumerate(group.rows):
                    row = batch.rows[place]
                    if place in group.errors:
                        self._fail(row, EngineFailure(group.errors[place]), done)
                        continue
                    task = tasks[place]
                    task.member.generation.rows -= 1
                    provenance = _provenance(row, task, batch, started, answer, len(answer.groups))
                    if task.request.answer(task, RowAnswer(group.columns, index, provenance)):
                        done.append(task.request)
        self._settle(done, {task.member.generation for task in tasks})

    def _command(self, lane: _Lane, message: LoadGeneration | DropGeneration, future: Future[Any]) -> None:
        if isinstance(message, LoadGeneration):
            loaded = lane.engine.call(message, GenerationLoaded, ANSWER_TIMEOUT)
            if loaded.error is None:
                lane.live[message.generation] = message
            future.set_result(loaded)
        else:
            lane.live.pop(message.generation, None)
            future.set_result(lane.engine.call(message, GenerationDropped, ANSWER_TIMEOUT))

    def _put_back(self, batch: Batch, error: EngineDied) -> None:
        """The engine died under ``batch``: its rows wait again, but for those that have seen too many deaths."""
        done: list[Pending] = []
        with self._lock:
            rows: list[Row] = []
            for row in batch.rows:
                row.payload.deaths += 1
                if row.payload.deaths >= MAX_DEATHS:
                    row.state = "cancelled"
                    self._fail(row, EngineFailure(f"vFM {row.vfm!r}: {MAX_DEATHS} engines died on it: {error}"), done)
                else:
                    rows.append(row)
            if rows:
                self._queue.put_back(Batch(batch.number, tuple(rows)), time.monotonic())
            self._work.notify_all()
        self._settle(done, {row.payload.member.generation for row in batch.rows})

    def _restart(self, lane: _Lane) -> bool:
        """Start anew, with every live generation; tries until it works or the host stops, waiting longer each time."""
        while not self._stopping:
            lane.starts += 1
            try:
                lane.engine.start(START_TIMEOUT)
                for message in lane.live.values():
                    lane.engine.call(message, GenerationLoaded, ANSWER_TIMEOUT)
                return True
            except FMplexError as error:
                pause = min(30.0, 0.5 * 2 ** min(lane.starts, 6))
                self._log(f"{error}; trying again in {pause:.1f} s")
                with self._lock:
                    self._work.wait_for(lambda: self._stopping, pause)
        return False

    def _end(self, lane: _Lane) -> None:
        lane.engine.stop(timeout=5.0)
        done: list[Pending] = []
        with self._lock:
            while lane.commands:
                lane.commands.popleft()[1].set_exception(Unavailable("the physical FM is shutting down"))
            while (decision := self._queue.next_batch(time.monotonic())).batch or decision.expired:
                for row in (*decision.expired, *(decision.batch.rows if decision.batch else ())):
                    self._fail(row, Unavailable("the physical FM is shutting down"), done)
        for request in done:
            self._finished(request)


def _provenance(
    row: Row, task: RowTask, batch: Batch, started: float, answer: BatchDone, n_vfms: int
) -> dict[str, Any]:
    """What ``info`` tells of an answer; times in microseconds."""
    generation = task.member.generation
    info: dict[str, Any] = {
        "vfm": generation.vfm,
        "version": generation.version,
        "generation": generation.number,
        "backbone": generation.artifact.backbone.fingerprint,
        "batch_rows": len(batch.rows),
        "batch_vfms": n_vfms,
        "queue_us": round((started - row.submitted) * 1e6),
        "compute_us": round(answer.seconds * 1e6),
    }
    if generation.artifact.kind == "token_classification":
        info["offsets"] = task.encoded.offsets
    return info
