"""Owns the queue and the engines: takes rows in, has batches run, hands answers out.

One lock guards the queue, the counters of generations and the requests under way. Decisions are made under it; waiting
for an engine, replying and reading files happen outside. Each engine has a thread of its own, its `Lane`.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from fmplex_backend.backbones.facts import BackboneFacts
from fmplex_backend.calibration.fit import Fit
from fmplex_backend.calibration.learner import Learner
from fmplex_backend.errors import DeadlineExceeded, EngineFailure, FMplexError, Quarantined, Unavailable
from fmplex_backend.host.engine_process import EngineDied, EngineProcess
from fmplex_backend.host.generations import Generation
from fmplex_backend.host.lane import HANG_SECONDS, LEAD, Command, Flight, Lane
from fmplex_backend.host.log import HostLog
from fmplex_backend.host.metrics import Meter, Snapshot
from fmplex_backend.host.requests import Pending, RowAnswer, RowTask, provenance
from fmplex_backend.host.room import Room
from fmplex_backend.host.suspects import Suspects, Trial
from fmplex_backend.messages import (
    BatchDone,
    DeviceFacts,
    DropGeneration,
    GenerationLoaded,
    LoadGeneration,
    Measure,
    Measured,
    PinGeneration,
    Point,
)
from fmplex_backend.scheduling.interface import Batch, Queue, Row, VfmPolicy

SLOW_SECONDS, SLOW_FACTOR = 1.0, 10.0
"""The log tells of a batch that takes longer than so many seconds, and so many times what was predicted."""
Told = LoadGeneration | DropGeneration | PinGeneration | Measure


class Dispatcher:
    """See the module. ``finished`` is called, outside the lock, with every request whose reply can be made."""

    def __init__(
        self,
        queue: Queue,
        engines: Sequence[EngineProcess],
        finished: Callable[[Pending], None],
        log: HostLog,
        *,
        slots: int = 64,
        ahead: bool = False,
        hang_seconds: float = HANG_SECONDS,
    ) -> None:
        """``slots``: adapters that an engine holds at a time; ``ahead``: send a batch while another one runs.

        ``hang_seconds``: see `Lane`.
        """
        self._slots = slots
        self._pinned = 0
        """Adapters that keep their slots."""
        self._queue = queue
        self._room = Room(queue.max_batch_rows)
        self._suspects = Suspects()
        self._lanes = [Lane(engine, self, log, ahead=ahead, hang_seconds=hang_seconds) for engine in engines]
        self._finished = finished
        self._log = log
        self.meter = Meter(len(engines))
        self.fit: Fit | None = None
        """What batches are predicted and charged by, once it was measured."""
        self._learner: Learner | None = None
        """Watches how good that is."""
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._parked: list[Lane] = []
        """Lanes that wait until something changes."""
        self._sooner = threading.Condition(self._lock)
        """A row came whose deadline is before ``_next_expiry``."""
        self._next_expiry = math.inf
        self._clock = threading.Thread(target=self._expire, name="deadlines")
        self._stopping = False

    # ---- life ----

    def start(self) -> BackboneFacts:
        """Start every engine and wait until all are ready. Raises `EngineFailure` with the first reason."""
        for lane in self._lanes:
            lane.start()
        try:
            facts = [lane.ready.result() for lane in self._lanes]
        except FMplexError:
            self.stop()
            raise
        self._clock.start()
        return facts[0]

    def stop(self) -> None:
        """End the engines and join their threads; what still waits is answered UNAVAILABLE."""
        with self._lock:
            self._stopping = True
            self._changed.notify_all()
            self._sooner.notify()
        for lane in self._lanes:
            lane.join()
        if self._clock.ident is not None:
            self._clock.join()
        done: list[Pending] = []
        with self._lock:
            for lane in self._lanes:
                lane.refuse_commands()
            left = [row for lane in self._lanes for flight in lane.flights for row in flight.batch.rows]
            for row in (*left, *self._suspects.withdraw(lambda _: True), *self._queue.drain()):
                self.meter.ended(row.vfm, "rejected")
                self._fail(row, Unavailable("the physical FM is shutting down"), done)
        self._settle(done)

    @property
    def engine_pids(self) -> list[int | None]:
        """Process ids of the engines."""
        return [lane.engine.pid for lane in self._lanes]

    # ---- what batches cost ----

    @property
    def device(self) -> DeviceFacts:
        """What the first engine computes on; known after `start`."""
        device = self._lanes[0].device
        assert device is not None
        return device

    def measure(self, max_rows: int, seconds: float) -> Measured:
        """Have the first engine measure what batches cost. Raises `FMplexError` where it cannot."""
        (future,) = self._tell(self._lanes[:1], Measure(max_rows, seconds))
        measured: Measured = future.result()
        return measured

    def use_fit(self, fit: Fit) -> None:
        """Predict and charge by ``fit``, and watch how good it is."""
        with self._lock:
            self._queue.change_cost(fit.cost)
            self.fit, self._learner = fit, Learner(fit)

    def _learn(self, batch: Batch, seconds: float) -> Fit | None:
        """Under the lock: compare with what was predicted; where the device has changed another fit, in use already."""
        if self._learner is None:
            return None
        point = Point(batch.physical_rows, max(row.size for row in batch.rows), len(batch.shares), seconds)
        if (fit := self._learner.add(point, batch.predicted)) is not None:
            self._queue.change_cost(fit.cost)
            self.fit = fit
        return fit

    # ---- vFMs and their generations ----

    def set_policy(self, vfm: str, policy: VfmPolicy, *, new: bool) -> None:
        """Make a vFM known to the queue, or change its policy; acts on the next decision."""
        with self._lock:
            (self._queue.add_vfm if new else self._queue.change_vfm)(vfm, policy, time.monotonic())
            self.meter.set_policy(vfm, policy.weight, policy.latency_slo)
            self._changed.notify_all()

    def remove_vfm(self, vfm: str) -> None:
        """Take no more rows of ``vfm``; those that wait are run."""
        with self._lock:
            self._queue.remove_vfm(vfm)
            self.meter.remove(vfm)

    def load(self, generation: Generation) -> GenerationLoaded:
        """Load on every engine, beside what is served; where one refuses it, the others give it back."""
        return self.load_all([generation])[0]

    def load_all(self, generations: Iterable[Generation]) -> list[GenerationLoaded]:
        """`load` several, without waiting for one before the next is begun."""
        begun = []
        for generation in generations:
            message = LoadGeneration(generation.number, generation.vfm, generation.version, str(generation.path))
            begun.append((message, self._tell(self._lanes, message)))
        return [self._loaded(message, [future.result() for future in futures]) for message, futures in begun]

    def _loaded(self, message: LoadGeneration, answers: list[GenerationLoaded]) -> GenerationLoaded:
        refused = next((answer for answer in answers if answer.error is not None), None)
        if refused is None:
            return answers[0]
        self._tell(self._lanes, DropGeneration(message.generation))
        return refused

    def pin(self, generation: Generation, pinned: bool) -> str | None:
        """Let a generation's adapter keep its slot on every engine, or not; why not, if it cannot be."""
        futures = self._tell(self._lanes, PinGeneration(generation.number, pinned))
        error: str | None = next((e for future in futures if (e := future.result().error) is not None), None)
        if error is None:
            self._note_pinned(generation, pinned)
        elif pinned:
            self._tell(self._lanes, PinGeneration(generation.number, False))
        return error

    def _note_pinned(self, generation: Generation, pinned: bool) -> None:
        with self._lock:
            self._pinned += pinned - generation.pinned
            generation.pinned = pinned
            self._queue.change_slots(self._slots - self._pinned)

    def retire(self, generation: Generation) -> None:
        """Take no more rows of ``generation``; it is dropped from the engines once its last row is answered."""
        with self._lock:
            generation.retired = True
        self._drop_idle([generation])

    def _drop_idle(self, generations: Iterable[Generation]) -> None:
        for generation in generations:
            with self._lock:
                idle = generation.retired and generation.rows == 0 and not generation.dropped
                generation.dropped |= idle
            if idle:
                generation.path.unlink(missing_ok=True)
                self._note_pinned(generation, False)
                self._tell(self._lanes, DropGeneration(generation.number))

    def _tell(self, lanes: Iterable[Lane], message: Told) -> list[Future[Any]]:
        futures: list[Future[Any]] = []
        with self._lock:
            for lane in lanes:
                command = Command(message)
                futures.append(command.done)
                if self._stopping:
                    command.done.set_exception(Unavailable("the physical FM is shutting down"))
                else:
                    lane.commands.append(command)
            self._changed.notify_all()
        return futures

    # ---- rows ----

    def check(self, vfms: Iterable[str], rows: int) -> None:
        """Raise `Rejected` where so many rows of each of ``vfms`` would be refused now, before work is done on them."""
        now = time.monotonic()
        with self._lock:
            for vfm in vfms:
                with contextlib.suppress(KeyError):  # removed since it was routed: `submit` sees to that
                    self._queue.check(vfm, rows, now)

    def submit(self, request: Pending, rows: Sequence[list[Row]]) -> bool:
        """Queue a request's rows, one list a member, all or none; False where a generation was retired meanwhile.

        Raises `Rejected` of the scheduling interface, and `Unavailable` at shutdown.
        """
        now = time.monotonic()
        started: tuple[Lane, Flight] | None = None
        done: list[Pending] = []
        ended: list[Row] = []
        with self._lock:
            if self._stopping:
                raise Unavailable("the physical FM is shutting down")
            if any(member.generation.retired for member in request.members):
                return False
            for member in request.members:
                if member.generation.quarantine is not None:
                    raise member.generation.quarantine.again()
            for group in rows:
                try:
                    self._queue.submit(group, now)
                except Exception:
                    self._cancel(request)
                    raise
                request.rows.extend(group)
                request.remaining += len(group)
                group[0].payload.member.generation.rows += len(group)
            self.meter.submitted(time.monotonic() - now)
            started = self._start_here(now, done, ended)
            # A lane whose engine is busy has no use for them yet.
            if self._queue.waiting() and any(_pause(lane, now) is not None for lane in self._parked):
                self._changed.notify_all()
            if any(row.deadline is not None and row.deadline < self._next_expiry for group in rows for row in group):
                self._sooner.notify()
        if started is not None:
            lane, flight = started
            lane.send_batch(flight)
        self._settle(done, ended)
        return True

    def _start_here(self, now: float, done: list[Pending], ended: list[Row]) -> tuple[Lane, Flight] | None:
        """Under the lock: give an idle engine a batch from this thread, which spares its lane's own a wake-up.

        Of several, the one that ran last: its weights may still be in the caches.
        """
        idle = [lane for lane in self._parked if not (lane.flights or lane.died or lane.commands or lane.reserved)]
        if not idle or self._suspects:
            return None
        lane = max(idle, key=lambda lane: lane.answered)
        flight = self._decide(lane, now, done, ended)
        return None if flight is None else (lane, flight)

    def _decide(self, lane: Lane, now: float, done: list[Pending], ended: list[Row]) -> Flight | None:
        """Under the lock: the next batch for ``lane``, which has it from here on; None where there is none.

        Rows whose time is over are ``ended``.
        """
        batch: Batch | None = self._trial(lane, now, done, ended)
        if batch is None:
            self._queue.change_max_batch_rows(self._room.rows(now))
            decision = self._queue.next_batch(now, lane.resident)
            batch = decision.batch
            self._end_expired(decision.expired, now, done)
            ended += decision.expired
        if batch is None:
            return None
        decided = time.monotonic()
        self.meter.decided(batch, decided - now)
        upcoming = [] if isinstance(batch, Trial) else self._upcoming(batch, lane)
        flight = Flight(batch, upcoming, decided)
        lane.flights.append(flight)
        return flight

    def waiting(self, vfm: str) -> int:
        """Rows of ``vfm`` that wait."""
        with self._lock:
            return self._queue.waiting(vfm)

    def metrics(self) -> Snapshot:
        """What was counted, and what waits now."""
        with self._lock:
            waiting = {vfm: self._queue.waiting(vfm) for vfm in self.meter.vfms()}
        return self.meter.snapshot(time.monotonic(), waiting)

    def _cancel(self, request: Pending) -> list[Row]:
        """Under the lock: give up the rows of ``request`` that still wait, and return them."""
        given_up = [row for row in request.rows if self._queue.cancel(row)]
        for row in given_up:
            row.payload.member.generation.rows -= 1
        return given_up

    def _fail(self, row: Row, error: FMplexError, done: list[Pending]) -> None:
        """Under the lock: end ``row``, which is not in the queue any more, and with it its whole request."""
        task: RowTask = row.payload
        task.member.generation.rows -= 1
        if task.request.fail(error, task):
            done.append(task.request)
            for given_up in self._cancel(task.request):
                self.meter.ended(given_up.vfm, "cancelled")

    def _end_expired(self, rows: Iterable[Row], now: float, done: list[Pending]) -> None:
        """Under the lock."""
        for row in rows:
            self.meter.expired(row.vfm, "unreachable" if row.deadline is None or now < row.deadline else "passed")
            self._fail(row, _too_late(row, now), done)

    def _settle(self, done: Sequence[Pending], rows: Iterable[Row] = ()) -> None:
        """Outside the lock: reply, and drop retired generations whose last row has ended."""
        for request in done:
            self._finished(request)
        touched = {row.payload.member.generation for row in rows}
        touched |= {member.generation for request in done for member in request.members}
        self._drop_idle(touched)

    # ---- what the lanes ask (`lane.Desk`) ----

    def next_work(self, lane: Lane) -> Flight | Command | EngineDied | None:
        """See `Desk`. Rows whose deadline has passed are answered here, before anything is run for them."""
        while True:
            done: list[Pending] = []
            ended: list[Row] = []
            flight: Flight | None = None
            with self._lock:
                if self._stopping and (lane.idle or lane.died):
                    return None
                if lane.died is not None:
                    return lane.died
                if not self._stopping and (command := lane.next_command()) is not None:
                    return command
                now = time.monotonic()
                if self._stopping or lane.reserved or (pause := _pause(lane, now)) is None:
                    self._park(lane)
                    continue
                if pause > 0:
                    self._changed.wait(pause)
                    continue
                flight = self._decide(lane, now, done, ended)
                if flight is None and not ended and (lane.flights or not self._suspects):
                    self._park(lane)
            self._settle(done, ended)
            if flight is not None:
                return flight

    def _park(self, lane: Lane) -> None:
        """Under the lock: let ``lane`` wait until something changes."""
        self._parked.append(lane)
        self._changed.wait()
        self._parked.remove(lane)

    def _trial(self, lane: Lane, now: float, done: list[Pending], ended: list[Row]) -> Trial | None:
        """Under the lock: suspects to run now. Never beside another batch, nor twice before others had their turn.

        Those whose time or request is over are ``ended``.
        """
        if lane.flights or lane.tried:
            lane.tried = False
            return None

        def is_wanted(row: Row) -> bool:
            task: RowTask = row.payload
            if task.request.error is not None:
                task.member.generation.rows -= 1
                self.meter.ended(row.vfm, "cancelled")
            elif row.deadline is not None and now >= row.deadline:
                self._end_expired([row], now, done)
            else:
                return True
            ended.append(row)
            return False

        trial = self._suspects.next(is_wanted)
        lane.tried = trial is not None
        return trial

    def _upcoming(self, batch: Batch, lane: Lane) -> list[int]:
        """Generations that should be brought nearer while ``batch`` runs."""
        taken = {row.adapter for row in batch.rows}
        upcoming: list[Any] = self._queue.upcoming(self._slots)
        return [number for number in upcoming if number not in lane.resident and number not in taken]

    def engine_died(self) -> None:
        """See `Desk`."""
        self.meter.engine_died()

    def wake(self) -> None:
        """See `Desk`."""
        with self._lock:
            self._changed.notify_all()

    def batch_done(self, batch: Batch, answer: BatchDone, started: float) -> None:
        """See `Desk`."""
        done: list[Pending] = []
        with self._lock:
            now = time.monotonic()
            # A trial is on nobody's account, and a batch that was run in parts says nothing of what batches cost.
            charges = {} if isinstance(batch, Trial) else self._queue.complete(batch, answer.seconds, now)
            fit = self._learn(batch, answer.seconds) if charges and answer.fitting is None else None
            smaller = answer.fitting is not None and self._room.shrink(answer.fitting, now)
            failed = frozenset(batch.rows[place] for group in answer.groups for place in group.errors)
            self.meter.completed(batch, charges, answer.seconds, started, now, failed)
            if self._queue.waiting() or self._stopping or self._suspects or any(lane.commands for lane in self._lanes):
                self._changed.notify_all()  # to none of the lanes it makes a difference else
            for group in answer.groups:
                for index, place in enumerate(group.rows):
                    row = batch.rows[place]
                    if place in group.errors:
                        self._fail(row, EngineFailure(group.errors[place]), done)
                        continue
                    task: RowTask = row.payload
                    task.member.generation.rows -= 1
                    info = provenance(
                        task, len(batch.rows), len(answer.groups), started - row.submitted, answer.seconds
                    )
                    if task.request.answer(task, RowAnswer(group.columns, index, info)):
                        done.append(task.request)
        if smaller:
            self._log(f"a batch of {len(batch.rows)} rows did not fit into memory; of {answer.fitting} from here on")
        if answer.seconds > max(SLOW_SECONDS, SLOW_FACTOR * batch.predicted):
            self._slow(batch, answer.seconds)
        if fit is not None:
            self._log(f"the device behaves otherwise than measured; cost model from here on: {fit}")
        self._settle(done, batch.rows)

    def _slow(self, batch: Batch, seconds: float) -> None:
        concerned = [row.payload.concerned for row in batch.rows]
        reason = f"their batch took {seconds:.1f} s, it should have taken {1e3 * batch.predicted:.0f} ms"
        self._log.sparingly("slow", "", concerned, reason, time.monotonic())

    def batch_lost(self, batch: Batch, error: EngineDied, blamed: bool) -> None:
        """See `Desk`. Its rows wait again, but for those that have seen too many engines die."""
        done: list[Pending] = []
        with self._lock:
            self.meter.lost(batch)
            again, convicted = self._suspects.sort_out(batch) if blamed else (list(batch.rows), [])
            if not isinstance(batch, Trial):
                self._queue.put_back(replace(batch, rows=tuple(again)), time.monotonic())
            for row in convicted:
                self._quarantine(row, error, done)
            self._changed.notify_all()
        self._settle(done, batch.rows)

    def _quarantine(self, guilty: Row, error: EngineDied, done: list[Pending]) -> None:
        """Under the lock: run no row of the generation of ``guilty`` any more; all that wait get the reason."""
        task: RowTask = guilty.payload
        generation = task.member.generation
        reason = Quarantined(
            f"vFM {generation.vfm!r}: version {generation.version} is quarantined: {task.deaths} engines died under a "
            f"row of it, the last one alone with that row ({error}); it is served again when its files change, or "
            f"after `fmplex task release {generation.vfm}`"
        )
        generation.quarantine = reason
        self.meter.set_quarantined(guilty.vfm, True)  # golden rows wait under another name: what serves goes on
        self._log(f"quarantined: {reason}; the row is of {task.concerned}", [task.concerned])

        def is_of_it(other: RowTask) -> bool:
            return other.member.generation is generation

        waiting = [row for row in self._queue.rows_of(guilty.vfm) if is_of_it(row.payload) and self._queue.cancel(row)]
        for row in (guilty, *waiting, *self._suspects.withdraw(is_of_it)):
            self.meter.ended(row.vfm, "failed")
            self._fail(row, reason, done)

    def lift_quarantine(self, generation: Generation) -> bool:
        """Run its rows again; whether it was in quarantine. One that takes another's place lifts the other's too."""
        with self._lock:
            was, generation.quarantine = generation.quarantine, None
            self.meter.set_quarantined(generation.vfm, False)
        return was is not None

    def _expire(self) -> None:
        """The clock thread: answers rows whose deadline passes while every engine is busy."""
        while True:
            done: list[Pending] = []
            with self._lock:
                if self._stopping:
                    return
                now = time.monotonic()
                decision = self._queue.expire(now)
                self._end_expired(decision.expired, now, done)
                if not decision.expired:
                    self._next_expiry = decision.wake_at or math.inf
                    self._sooner.wait(None if decision.wake_at is None else max(1e-3, decision.wake_at - now))
            self._settle(done, decision.expired)

    def wait_stopping(self, seconds: float) -> bool:
        """See `Desk`."""
        with self._lock:
            return self._changed.wait_for(lambda: self._stopping, seconds)


def _pause(lane: Lane, now: float) -> float | None:
    """Seconds until ``lane`` should have its next batch; None until it has answered."""
    if not lane.flights:
        return 0.0
    if not lane.ahead or len(lane.flights) > 1 or isinstance(lane.flights[0].batch, Trial):
        return None
    flight = lane.flights[0]
    return flight.started + flight.batch.predicted - LEAD - now


def _too_late(row: Row, now: float) -> DeadlineExceeded:
    waited = (now - row.submitted) * 1e3
    what = "the deadline passed"
    if row.deadline is not None and now < row.deadline:
        what = f"the deadline is in {(row.deadline - now) * 1e3:.0f} ms and cannot be met any more,"
    return DeadlineExceeded(f"vFM {row.vfm!r}: {what} after {waited:.0f} ms in the queue; it was not run")
