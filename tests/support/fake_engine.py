"""An engine without a process: same interface as `EngineProcess`, answers at once, dies when told to."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from fmplex_backend.backbones.facts import BackboneFacts
from fmplex_backend.errors import EngineFailure
from fmplex_backend.host.engine_process import EngineDied
from fmplex_backend.messages import (
    BatchDone,
    DeviceFacts,
    DropGeneration,
    GenerationDropped,
    GenerationLoaded,
    GenerationPinned,
    GroupAnswer,
    LoadGeneration,
    Measure,
    Measured,
    Ping,
    PinGeneration,
    Point,
    Pong,
    RunBatch,
)


class FakeEngine:
    """Answers every row with the number of the generation that was asked."""

    device = "fake"

    def __init__(self, facts: BackboneFacts | None = None) -> None:
        self.facts = facts
        self.pid = 1000
        self.starts = 0
        self.live: set[int] = set()
        self.pinned: set[int] = set()
        self.inbox: queue.Queue[Any] = queue.Queue()
        self.dead = False
        self.batches: list[RunBatch] = []
        self.stopped = False
        self.gate = threading.Event()
        """Batches wait for it; cleared, the engine is busy."""
        self.gate.set()
        self.entered = threading.Semaphore(0)
        """Released once for every batch that reaches the engine."""
        self.deaths: list[Callable[[object], bool]] = []
        """Each ends the engine once, at the first message that it is true for."""
        self.refuse: Callable[[LoadGeneration], str | None] = lambda _: None
        self.start_errors: list[str] = []
        self.answer: Callable[[RunBatch], BatchDone] = answer_all
        self.points = [Point(n, 8, 1, 1e-3 + 1e-5 * n * 8) for n in (1, 4)]
        """What it measures."""
        self.measured = 0
        self.pings = 0

    def start(self, timeout: float) -> Any:
        if self.start_errors:
            raise EngineFailure(self.start_errors.pop(0))
        self.starts += 1
        self.pid += 1
        self.live.clear()
        self.pinned.clear()
        self.inbox = queue.Queue()
        self.dead = False
        return SimpleNamespace(facts=self.facts, device=DeviceFacts("fake", 1, "none"))

    def send(self, message: Any) -> None:
        if self.dead:
            raise EngineDied("engine on fake: is dead")
        self.inbox.put(message)

    def receive(self, timeout: float) -> Any:
        """Carries out what was sent, in the thread that waits for the answer."""
        try:
            message = self.inbox.get(timeout=timeout)
        except queue.Empty:
            return None
        if message is None:
            raise EngineDied("engine on fake: was stopped")
        return self._answer(message)

    def call(self, message: Any, answer: type, timeout: float) -> Any:
        return self._answer(message)

    def _answer(self, message: Any) -> Any:
        if isinstance(message, RunBatch):
            self.entered.release()
            assert self.gate.wait(10)
        for death in self.deaths:
            if death(message):
                self.deaths.remove(death)
                self.dead = True
                raise EngineDied("engine on fake: ended with code -9")
        if isinstance(message, LoadGeneration):
            if error := self.refuse(message):
                return GenerationLoaded(message.generation, error)
            self.live.add(message.generation)
            if message.pinned:
                self.pinned.add(message.generation)
            return GenerationLoaded(message.generation, None, 100)
        if isinstance(message, DropGeneration):
            self.live.remove(message.generation)
            return GenerationDropped(message.generation)
        if isinstance(message, PinGeneration):
            assert message.generation in self.live
            (self.pinned.add if message.pinned else self.pinned.discard)(message.generation)
            return GenerationPinned(message.generation, None)
        if isinstance(message, Ping):
            self.pings += 1
            return Pong()
        if isinstance(message, Measure):
            assert not self.live, "measured beside vFMs"
            self.measured += 1
            return Measured(self.points, 0.01)
        assert set(message.generations) <= self.live, "asked for a generation that it does not hold"
        self.batches.append(message)
        return self.answer(message)

    def kill(self) -> None:
        """Who receives finds it dead."""
        self.inbox.put(None)

    def stop(self, timeout: float) -> None:
        self.stopped = True
        self.kill()

    def close(self) -> None:
        """Nothing to free."""


def answer_all(message: RunBatch) -> BatchDone:
    """Every row in the group of its generation."""
    members: dict[int, list[int]] = {}
    for place, generation in enumerate(message.generations):
        members.setdefault(generation, []).append(place)
    groups = [GroupAnswer(g, rows, {"vector": np.full((len(rows), 2), g, np.float32)}) for g, rows in members.items()]
    return BatchDone(message.batch, groups, 0.001)


def dies_on(kind: type) -> Callable[[object], bool]:
    """For `FakeEngine.deaths`."""
    return lambda message: isinstance(message, kind)
