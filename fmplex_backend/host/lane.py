"""One engine and the thread that starts it, feeds it and starts it anew when it dies."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from fmplex_backend.backbones.facts import BackboneFacts
from fmplex_backend.errors import FMplexError, Unavailable
from fmplex_backend.host.engine_process import EngineDied, EngineProcess
from fmplex_backend.host.requests import RowTask
from fmplex_backend.messages import (
    BatchDone,
    DeviceFacts,
    DropGeneration,
    GenerationDropped,
    GenerationLoaded,
    LoadGeneration,
    Measure,
    Measured,
    RunBatch,
)
from fmplex_backend.scheduling.interface import Batch

START_TIMEOUT = 300.0
ANSWER_TIMEOUT = 120.0
LONGEST_PAUSE = 30.0

MAX_DEATHS = 2
"""What was under way when this many engines died, a row or a generation being loaded, is given up with an error."""


@dataclass(eq=False)
class Command:
    """Something to tell one engine besides batches."""

    message: LoadGeneration | DropGeneration | Measure
    done: Future[Any] = field(default_factory=Future)
    """The engine's answer."""
    deaths: int = 0
    """Engines that died while they carried it out."""


class Desk(Protocol):
    """What a lane needs of the dispatcher; all of it takes the dispatcher's own lock."""

    def next_work(self, lane: Lane) -> Batch | Command | None:
        """Wait for a command for ``lane`` or a batch; None to stop."""

    def batch_done(self, batch: Batch, answer: BatchDone, started: float) -> None:
        """``batch`` was started at ``started`` and is answered."""

    def batch_lost(self, batch: Batch, error: EngineDied) -> None:
        """The engine died under ``batch``."""

    def wait_stopping(self, seconds: float) -> bool:
        """Wait, at most so long, for the stop; whether it came."""


class Lane:
    """See the module. ``commands`` is guarded by the dispatcher's lock."""

    def __init__(self, engine: EngineProcess, desk: Desk, log: Callable[[str], None]) -> None:
        self.engine = engine
        self.commands: deque[Command] = deque()
        self.ready: Future[BackboneFacts] = Future()
        """The backbone's facts, or why the engine cannot start."""
        self.device: DeviceFacts | None = None
        """What the engine computes on, once it is ready."""
        self._desk = desk
        self._log = log
        self._live: dict[int, LoadGeneration] = {}
        self._thread = threading.Thread(target=self._run, name=f"engine {engine.device}")

    def start(self) -> None:
        """Start the thread, which starts the engine."""
        self._thread.start()

    def join(self) -> None:
        """Wait until the thread, and with it the engine, has ended."""
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            ready = self.engine.start(START_TIMEOUT)
            self.device = ready.device
            self.ready.set_result(ready.facts)
        except FMplexError as error:
            self.ready.set_exception(error)
            return
        while (work := self._desk.next_work(self)) is not None:
            try:
                if isinstance(work, Batch):
                    self._batch(work)
                else:
                    self._command(work)
            except EngineDied as error:
                self._log(f"{error}; starting a new one")
                if isinstance(work, Batch):
                    self._desk.batch_lost(work, error)
                else:
                    self._command_lost(work, error)
                if not self._restart():
                    break
        self.engine.stop(timeout=5.0)

    def _batch(self, batch: Batch) -> None:
        tasks: list[RowTask] = [row.payload for row in batch.rows]
        generations = [task.member.generation.number for task in tasks]
        started = time.monotonic()
        message = RunBatch(batch.number, generations, [task.encoded.tokens for task in tasks])
        answer = self.engine.call(message, BatchDone, ANSWER_TIMEOUT)
        places = sorted(place for group in answer.groups for place in group.rows)
        if answer.batch != batch.number or places != list(range(len(tasks))):
            self.engine.kill()
            raise EngineDied(f"engine on {self.engine.device}: answered rows {places} of {len(tasks)}")
        self._desk.batch_done(batch, answer, started)

    def _command(self, command: Command) -> None:
        message, future = command.message, command.done
        if isinstance(message, LoadGeneration):
            loaded = self.engine.call(message, GenerationLoaded, ANSWER_TIMEOUT)
            if loaded.error is None:
                self._live[message.generation] = message
            future.set_result(loaded)
        elif isinstance(message, Measure):
            future.set_result(self.engine.call(message, Measured, ANSWER_TIMEOUT))
        elif self._live.pop(message.generation, None) is not None:
            future.set_result(self.engine.call(message, GenerationDropped, ANSWER_TIMEOUT))
        else:
            future.set_result(GenerationDropped(message.generation))  # the engine that held it is gone

    def _command_lost(self, command: Command, error: EngineDied) -> None:
        """Try once more on the next engine; what kills that one too is refused, so that it kills no third."""
        command.deaths += 1
        if command.deaths < MAX_DEATHS:
            self.commands.appendleft(command)  # atomic; only this thread takes from the left
        elif isinstance(command.message, LoadGeneration):
            reason = f"{MAX_DEATHS} engines died while they loaded it, the last one: {error}"
            command.done.set_result(GenerationLoaded(command.message.generation, reason))
        elif isinstance(command.message, Measure):
            command.done.set_exception(error)
        else:
            command.done.set_result(GenerationDropped(command.message.generation))

    def _restart(self) -> bool:
        """Start anew with every live generation; tries until it works or the host stops, waiting longer each time."""
        pause = 0.0
        while not self._desk.wait_stopping(pause):
            try:
                self.engine.start(START_TIMEOUT)
                self._reload()
            except FMplexError as error:
                pause = min(LONGEST_PAUSE, max(0.5, 2 * pause))
                self._log(f"{error}; trying again in {pause:.1f} s")
                self.engine.kill()
            else:
                return True
        return False

    def _reload(self) -> None:
        for message in list(self._live.values()):
            loaded = self.engine.call(message, GenerationLoaded, ANSWER_TIMEOUT)
            if loaded.error is not None:  # its rows are answered with an error; the other vFMs are served
                del self._live[message.generation]
                self._log(f"defect: vFM {message.vfm!r} cannot be loaded again: {loaded.error}")

    def refuse_commands(self) -> None:
        """At the end: nobody will carry out what is still asked."""
        while self.commands:
            self.commands.popleft().done.set_exception(Unavailable("the physical FM is shutting down"))
