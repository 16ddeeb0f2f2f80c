"""One engine and the threads that start it, feed it, hear its answers, and start it anew when it dies.

1. The feeding thread starts the engine and sends it what the desk gives: commands at once, a batch when the one before
   is done, or where ``ahead`` is allowed, shortly before it should be, so that the engine prepares it meanwhile. To an
   engine that has none, the thread that brings rows sends the batch itself.
2. The hearing thread takes the answers, which settle batches and commands. It lives as long as the engine's process.
3. An engine without work is asked every second whether it lives (`heartbeat`).
4. An engine that dies, hangs or answers wrongly takes nothing with it: what it had not answered is given back, and its
   successor gets every live generation before anything else.
5. Commands that an engine had when it died may have killed it. From then on each of them is sent when the engine has
   nothing else to do, no batch either; the one that engines die of all the same is refused.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from fmplex_backend.backbones.facts import BackboneFacts
from fmplex_backend.errors import FMplexError, Unavailable
from fmplex_backend.host.engine_process import EngineDied, EngineProcess
from fmplex_backend.host.heartbeat import LISTEN_SECONDS, Heartbeat
from fmplex_backend.host.log import HostLog, naming
from fmplex_backend.host.requests import RowTask
from fmplex_backend.messages import (
    BatchDone,
    DeviceFacts,
    DropGeneration,
    GenerationDropped,
    GenerationLoaded,
    GenerationPinned,
    LoadGeneration,
    Measure,
    Measured,
    Ping,
    PinGeneration,
    Pong,
    RunBatch,
)
from fmplex_backend.scheduling.interface import Batch

START_TIMEOUT = 300.0
ANSWER_TIMEOUT = 120.0
"""Of commands."""
HANG_SECONDS, HANG_FACTOR = 3.0, 20.0
"""A batch hangs that takes longer than so many seconds, and so many times what was predicted…"""
COLD_SECONDS = 60.0
"""…or, the first one of an engine on a GPU, which loads libraries meanwhile, than these."""
LONGEST_PAUSE = 30.0
SHORT_LIFE = 1.0
"""Seconds; an engine that dies sooner may do so for ever…"""
FREE_LIVES = 12
"""…so after so many in a row, which finding a guilty row takes, there are pauses before the next one."""
LEAD = 2e-3
"""Seconds before a batch should end at which the next one is decided, where that is allowed."""

MAX_DEATHS = 3
"""A command that was under way when this many engines died, the last ones with nothing else, is given up."""


@dataclass(eq=False)
class Command:
    """Something to tell one engine besides batches."""

    message: LoadGeneration | DropGeneration | PinGeneration | Measure
    done: Future[Any] = field(default_factory=Future)
    """The engine's answer."""
    deaths: int = 0
    """Engines that died while they had it."""
    sent: float = 0.0

    @property
    def key(self) -> tuple[type, int]:
        """Of the answer that will come."""
        if isinstance(self.message, Measure):
            return Measured, 0
        answers = {LoadGeneration: GenerationLoaded, DropGeneration: GenerationDropped, PinGeneration: GenerationPinned}
        return answers[type(self.message)], self.message.generation


@dataclass(eq=False)
class Flight:
    """A batch that the engine has, or is about to get."""

    batch: Batch
    upcoming: list[int]
    """Generations that should be brought nearer meanwhile."""
    started: float
    """When the engine began with it, as far as can be told from here."""


class Desk(Protocol):
    """What a lane needs of the dispatcher; all of it takes the dispatcher's own lock."""

    def next_work(self, lane: Lane) -> Flight | Command | EngineDied | None:
        """Wait for a command for ``lane``, a batch, or the engine's death; None to stop.

        A batch is among the ``flights`` of ``lane`` already. It may also come past this, by `Lane.send_batch`.
        """

    def batch_done(self, batch: Batch, answer: BatchDone, started: float) -> None:
        """``batch`` was started at ``started`` and is answered."""

    def batch_lost(self, batch: Batch, error: EngineDied, blamed: bool) -> None:
        """The engine died before it answered ``batch``; ``blamed``: while it ran it."""

    def engine_died(self) -> None:
        """An engine has ended, for whatever reason, but for the host's own stop."""

    def wake(self) -> None:
        """Something that `next_work` waits for has changed."""

    def wait_stopping(self, seconds: float) -> bool:
        """Wait, at most so long, for the stop; whether it came."""


class Lane:
    """See the module. ``commands`` and ``flights`` are guarded by the dispatcher's lock, but for single steps."""

    def __init__(
        self,
        engine: EngineProcess,
        desk: Desk,
        log: HostLog,
        *,
        ahead: bool = False,
        hang_seconds: float = HANG_SECONDS,
    ) -> None:
        """``ahead``: whether a batch may be sent while another one runs; ``hang_seconds``: see `HANG_SECONDS`."""
        self.engine = engine
        self.ahead = ahead
        self.commands: deque[Command] = deque()
        self.flights: deque[Flight] = deque()
        """Batches that the engine has, the running one first."""
        self.died: EngineDied | None = None
        """Why the engine is no more, until it is started anew."""
        self.answered = 0.0
        """When it answered a batch last."""
        self.tried = False
        """Whether the batch before was a trial of suspects."""
        self.resident: set[int] = set()
        """Generations whose adapters are in its slots."""
        self.ready: Future[BackboneFacts] = Future()
        """The backbone's facts, or why the engine cannot start."""
        self.device: DeviceFacts | None = None
        """What the engine computes on, once it is ready."""
        self._desk = desk
        self._log = log
        self._hang_seconds = hang_seconds
        self._cold = True
        """No batch was answered by this engine yet."""
        self._born = 0.0
        self._short_lives = 0
        self._asked: dict[tuple[type, int], Command] = {}
        """Commands that were sent."""
        self._live: dict[int, LoadGeneration] = {}
        self._sending = threading.Lock()
        """Both threads send."""
        self._feeding = threading.Thread(target=self._feed, name=f"engine {engine.device}")
        self._hearing: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread, which starts the engine."""
        self._feeding.start()

    def join(self) -> None:
        """Wait until the thread, and with it the engine, has ended."""
        if self._feeding.ident is not None:
            self._feeding.join()

    @property
    def idle(self) -> bool:
        """Whether the engine owes no answer."""
        return not self.flights and not self._asked

    def next_command(self) -> Command | None:
        """Take the command to send now; None where there is none, or it must wait for the answer to something else."""
        if not self.commands:
            return None
        asked = list(self._asked.values())
        if asked and any(command.deaths for command in (*asked, self.commands[0])):
            return None
        if self.commands[0].deaths and self.flights:
            return None
        return self.commands.popleft()

    @property
    def reserved(self) -> bool:
        """Whether it gets no batch now: a command that engines may have died of is under way, or the next one."""
        return any(command.deaths for command in (*list(self._asked.values()), *list(self.commands)[:1]))

    # ---- feeding ----

    def _feed(self) -> None:
        try:
            ready = self.engine.start(START_TIMEOUT)
        except FMplexError as error:
            self.ready.set_exception(error)
            return
        self.device = ready.device
        self._begin()
        self.ready.set_result(ready.facts)
        while (work := self._desk.next_work(self)) is not None:
            if isinstance(work, EngineDied):
                if not self._revive(work):
                    break
            elif isinstance(work, Flight):
                self.send_batch(work)
            else:
                self._send_command(work)
        self._end(5.0)

    def _end(self, timeout: float) -> None:
        """End the engine, kindly for so many seconds, and the hearing with it."""
        self.engine.stop(timeout)
        if self._hearing is not None:
            self._hearing.join()
        self.engine.close()

    def send_batch(self, flight: Flight) -> None:
        """Send a batch, from whatever thread, unless it was given back because the engine has died since."""
        tasks: list[RowTask] = [row.payload for row in flight.batch.rows]
        generations = [task.member.generation.number for task in tasks]
        tokens = [task.encoded.tokens for task in tasks]
        message = RunBatch(flight.batch.number, generations, tokens, flight.upcoming)
        with self._sending:
            if flight in self.flights:
                self._send_held(message)

    def _send_command(self, command: Command) -> None:
        message = command.message
        if isinstance(message, DropGeneration) and self._live.pop(message.generation, None) is None:
            command.done.set_result(GenerationDropped(message.generation))  # the engine that held it is gone
            return
        if isinstance(message, PinGeneration):
            if message.generation not in self._live:
                command.done.set_result(GenerationPinned(message.generation, None))
                return
            self._live[message.generation] = replace(self._live[message.generation], pinned=message.pinned)
        command.sent = time.monotonic()
        self._asked[command.key] = command
        self._send(message)

    def _send(self, message: object) -> None:
        with self._sending:
            self._send_held(message)

    def _send_held(self, message: object) -> None:
        try:
            self.engine.send(message)
        except EngineDied as error:  # the hearing thread will know too; what was sent is given back then
            self._log(f"{error}")

    # ---- hearing ----

    def _begin(self) -> None:
        self._born, self._cold = time.monotonic(), True
        self._hearing = threading.Thread(target=self._listen, name=f"answers of {self.engine.device}")
        self._hearing.start()

    def _listen(self) -> None:
        heart = Heartbeat(time.monotonic())
        try:
            while True:
                answer = self.engine.receive(LISTEN_SECONDS)
                now = time.monotonic()
                if not heart.look(now):
                    self._forgive(now)
                if answer is not None:
                    heart.heard(now)
                    self._take(answer)
                elif (overdue := self._overdue(heart, now)) is not None:
                    raise EngineDied(f"engine on {self.engine.device}: {overdue}")
                elif not self.flights and not self._measures and heart.ask(now):
                    self._send(Ping())
        except EngineDied as error:
            self.died = error
        except Exception as error:  # a defect of ours: else nobody would hear this engine, and its rows wait for ever
            self.died = EngineDied(f"defect: {type(error).__name__}: {error}; engine on {self.engine.device} is ended")
        self._desk.wake()

    def _forgive(self, now: float) -> None:
        """The host was stopped for a while, and its engines with it, maybe: what they owe, they owe from now on."""
        for command in list(self._asked.values()):
            command.sent = now
        for flight in list(self.flights)[:1]:
            flight.started = now

    @property
    def _measures(self) -> bool:
        return any(isinstance(command.message, Measure) for command in list(self._asked.values()))

    def _overdue(self, heart: Heartbeat, now: float) -> str | None:
        """What the engine has owed for too long."""
        for command in list(self._asked.values()):
            if now - command.sent > ANSWER_TIMEOUT:
                return f"did not answer {type(command.message).__name__} for {ANSWER_TIMEOUT:.0f} s"
        for flight in list(self.flights)[:1]:
            if (took := now - flight.started) > self._patience(flight):
                predicted = 1e3 * flight.batch.predicted
                return f"hangs: no answer for {took:.1f} s to a batch that should take {predicted:.0f} ms"
        if heart.owed(now) > self._hang_seconds and not self.flights:
            return f"hangs: no answer for {heart.owed(now):.1f} s to the question whether it lives"
        return None

    def _patience(self, flight: Flight) -> float:
        least = COLD_SECONDS if self._cold and self.engine.device != "cpu" else self._hang_seconds
        return max(least, HANG_FACTOR * flight.batch.predicted)

    def _take(self, answer: Any) -> None:
        if isinstance(answer, Pong):
            return
        if isinstance(answer, BatchDone):
            self._take_batch(answer)
            return
        key = (type(answer), getattr(answer, "generation", 0))
        command = self._asked.pop(key, None)
        if command is None:
            raise EngineDied(
                f"engine on {self.engine.device}: answered {type(answer).__name__}, which nobody asked for"
            )
        if isinstance(answer, GenerationLoaded) and answer.error is None:
            assert isinstance(command.message, LoadGeneration)
            self._live[answer.generation] = command.message
            if command.message.pinned:
                self.resident.add(answer.generation)
        if isinstance(answer, GenerationDropped):
            self.resident.discard(answer.generation)
        command.done.set_result(answer)
        if not self._asked:
            self._desk.wake()

    def _take_batch(self, answer: BatchDone) -> None:
        flight = self.flights[0] if self.flights else None
        places = sorted(place for group in answer.groups for place in group.rows)
        if flight is None or answer.batch != flight.batch.number or places != list(range(len(flight.batch.rows))):
            rows = len(flight.batch.rows) if flight else 0
            raise EngineDied(f"engine on {self.engine.device}: answered rows {places} of {rows}")
        self.resident.difference_update(answer.evicted)
        self.resident.update(answer.installed)
        now = time.monotonic()
        self._cold = False
        self.answered = now
        self.flights.popleft()
        if self.flights:
            self.flights[0].started = now
        self._desk.batch_done(flight.batch, answer, flight.started)

    # ---- death ----

    def _revive(self, error: EngineDied) -> bool:
        """Give back what the engine had, and start another; False where the host stops first."""
        pause = self._pause_before_next()
        concerned = [row.payload.concerned for flight in list(self.flights) for row in flight.batch.rows]
        had = f"; it had {naming(concerned)}" if concerned else ""
        self._log(f"{error}; starting a new one{f' in {pause:.1f} s' if pause else ''}{had}", concerned)
        self._desk.engine_died()
        self._end(0.0)
        with self._sending:  # the next engine must get nothing of what is given back
            flights, asked = list(self.flights), list(self._asked.values())
            self.flights.clear()
        self._asked.clear()
        for place, flight in enumerate(flights):
            self._desk.batch_lost(flight.batch, error, blamed=place == 0)
        for command in reversed(asked):
            self._command_lost(command, error)
        return self._restart(pause)

    def _pause_before_next(self) -> float:
        """Nothing, but where one engine after the other dies at once."""
        self._short_lives = self._short_lives + 1 if time.monotonic() - self._born < SHORT_LIFE else 0
        beyond = self._short_lives - FREE_LIVES
        return 0.0 if beyond < 0 else min(LONGEST_PAUSE, 0.5 * 2.0 ** min(beyond, 10))

    def _command_lost(self, command: Command, error: EngineDied) -> None:
        """Try again on the next engine, until too many have died."""
        command.deaths += 1
        if isinstance(command.message, DropGeneration):  # the next engine gets what is live, as it is
            command.done.set_result(GenerationDropped(command.message.generation))
        elif isinstance(command.message, PinGeneration):
            command.done.set_result(GenerationPinned(command.message.generation, None))
        elif command.deaths < MAX_DEATHS:
            self.commands.appendleft(command)  # atomic; only this thread takes from the left
        elif isinstance(command.message, LoadGeneration):
            reason = f"{MAX_DEATHS} engines died while they loaded it, the last one: {error}"
            command.done.set_result(GenerationLoaded(command.message.generation, reason))
        else:
            command.done.set_exception(error)

    def _restart(self, pause: float) -> bool:
        """Start anew with every live generation; tries until it works or the host stops, waiting longer each time."""
        while not self._desk.wait_stopping(pause):
            try:
                self.engine.start(START_TIMEOUT)
                self._reload()
            except FMplexError as error:
                pause = min(LONGEST_PAUSE, max(0.5, 2 * pause))
                self._log(f"{error}; trying again in {pause:.1f} s")
                self.engine.kill()
            else:
                self.died = None
                self._begin()
                return True
        return False

    def _reload(self) -> None:
        self.resident = {message.generation for message in self._live.values() if message.pinned}
        for message in list(self._live.values()):
            loaded = self.engine.call(message, GenerationLoaded, ANSWER_TIMEOUT)
            if loaded.error is not None:  # its rows are answered with an error; the other vFMs are served
                del self._live[message.generation]
                self._log(f"defect: vFM {message.vfm!r} cannot be loaded again: {loaded.error}")

    def refuse_commands(self) -> None:
        """At the end: nobody will carry out what is still asked."""
        while self.commands:
            self.commands.popleft().done.set_exception(Unavailable("the physical FM is shutting down"))
