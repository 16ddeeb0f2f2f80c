"""Several physical FMs on one device: each with its own queue and one batch at a time, all batches that run at once
sharing the device evenly, as processes share cores or a GPU's time."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fmplex_backend.scheduling.base import PolicyQueue
from fmplex_backend.scheduling.interface import Batch, Rejected, Row, VfmPolicy
from fmplex_tools.bench.simulate.device import Device
from fmplex_tools.bench.simulate.trace import Arrival


@dataclass(frozen=True)
class Part:
    """One physical FM."""

    queue: PolicyQueue[Any]
    device: Device
    """What its batches take when nothing else runs."""
    policies: Mapping[str, VfmPolicy]


@dataclass
class Answers:
    """Of all vFMs, by name."""

    latencies: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Seconds from submission to answer, in the order of the answers."""
    rejected: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """Rows."""


@dataclass
class _Running:
    batch: Batch
    since: float
    left: float
    """Seconds of a device of its own."""


def together(parts: Sequence[Part], arrivals: Sequence[Arrival], *, seed: int = 0) -> Answers:
    """Run ``arrivals``, by time, each for a vFM of one of the ``parts``; what waits at their end is answered too."""
    return _Run(parts, seed).answers(arrivals)


class _Run:
    def __init__(self, parts: Sequence[Part], seed: int) -> None:
        self._parts, self._chance, self._out = parts, random.Random(seed), Answers()
        self._running: dict[int, _Running] = {}
        self._of: dict[str, int] = {}
        for number, part in enumerate(parts):
            for name, policy in part.policies.items():
                part.queue.add_vfm(name, policy, 0.0)
                self._of[name] = number

    def answers(self, arrivals: Sequence[Arrival]) -> Answers:
        now, at = 0.0, 0
        while at < len(arrivals) or self._running:
            arrives = arrivals[at].time if at < len(arrivals) else math.inf
            first = min(self._running, key=lambda number: self._running[number].left, default=None)
            share = 1 / max(1, len(self._running))
            ends = now + self._running[first].left / share if first is not None else math.inf
            before, now = now, min(arrives, ends)
            for running in self._running.values():
                running.left -= (now - before) * share
            if first is not None and ends <= arrives:
                self._finish(first, now)
                self._start(first, now)
            else:
                self._submit(arrivals[at], now)
                self._start(self._of[arrivals[at].vfm], now)
                at += 1
        return self._out

    def _submit(self, arrival: Arrival, now: float) -> None:
        try:
            self._parts[self._of[arrival.vfm]].queue.submit(
                [Row(arrival.vfm, size, None) for size in arrival.sizes], now
            )
        except Rejected:
            self._out.rejected[arrival.vfm] += len(arrival.sizes)

    def _start(self, number: int, now: float) -> None:
        part = self._parts[number]
        if number not in self._running and (batch := part.queue.next_batch(now).batch) is not None:
            self._running[number] = _Running(batch, now, part.device.seconds(batch, self._chance))

    def _finish(self, number: int, now: float) -> None:
        done = self._running.pop(number)
        self._parts[number].queue.complete(done.batch, now - done.since, now)
        for row in done.batch.rows:
            self._out.latencies[row.vfm].append(now - row.submitted)
