"""What a server's processes hold and have used, sampled now and then: memory, threads, files, segments, processors."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from fmplex_tools.bench.engine.cpu import GENERATOR
from fmplex_tools.bench.engine.fleet_server import MEGA
from fmplex_tools.bench.fair.arena import Arena
from fmplex_tools.bench.faults.own_memory import own_bytes

SERVER = ("tritonserver", "host", "engines", "guard")
"""Roles of the server's processes. ``engines`` are with the fork server, whose pages they share."""
CLIENT = "generator"
"""Role of the load processes."""
SEGMENTS = Path("/dev/shm")


@dataclass(frozen=True)
class Held:
    """What the processes of one role hold together at a moment."""

    memory: float = 0.0
    """MB of its own, see `own_bytes`."""
    threads: int = 0
    files: int = 0
    """Open file descriptors."""
    processes: int = 0
    seconds: float = 0.0
    """Of processor time so far, user and system; what ended with an engine that died is missing."""

    def __add__(self, other: Held) -> Held:
        return Held(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(Held)))


@dataclass(frozen=True)
class Sample:
    """One look."""

    at: float
    """On the monotonic clock."""
    held: dict[str, Held]
    """By role."""
    segments: int
    """Of shared memory with a name, the whole machine's."""

    @property
    def server(self) -> Held:
        """All of the server's processes."""
        return sum((self.held[role] for role in SERVER), Held())


class Sampler:
    """Takes a sample whenever it is called, but no sooner than ``every`` seconds after the one before."""

    def __init__(self, made: Arena, every: float) -> None:
        """The host must live as long; engines may die at any time."""
        self._every = every
        self._server, self._host = made.processes()
        self.samples: list[Sample] = []

    def __call__(self, now: float) -> None:
        """``now`` is on the monotonic clock."""
        if not self.samples or now >= self.samples[-1].at + self._every:
            self.take()

    def take(self) -> None:
        """Take one now."""
        started = self._host.children(recursive=True)
        guards = [child for child in started if _has(child, "guard.py")]
        roles = {
            "tritonserver": [self._server],
            "host": [self._host],
            "engines": [child for child in started if child not in guards],
            "guard": guards,
            CLIENT: [child for child in psutil.Process().children() if _has(child, GENERATOR)],
        }
        held = {role: sum(map(_held, processes), Held()) for role, processes in roles.items()}
        self.samples.append(Sample(time.monotonic(), held, len(os.listdir(SEGMENTS))))


def _has(process: psutil.Process, word: str) -> bool:
    with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        return any(word in argument for argument in process.cmdline())
    return False


def _held(process: psutil.Process) -> Held:
    """Nothing of a process that ends meanwhile."""
    with suppress(psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied, OSError):
        times = process.cpu_times()
        return Held(
            own_bytes(process.pid) / MEGA,
            process.num_threads(),
            process.num_fds(),
            1,
            times.user + times.system,
        )
    return Held()


def medians(samples: Sequence[Sample], value: Callable[[Sample], float]) -> tuple[float, float]:
    """Of the second sixth of ``samples`` and of the last one: before and after, without the warm-up."""
    values = [value(sample) for sample in samples]
    sixth = max(1, len(values) // 6)
    return float(np.median(values[sixth : 2 * sixth] or values)), float(np.median(values[-sixth:]))


def as_data(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """For the JSON file: seconds since the first one, segments, and what each role holds."""
    return [
        {"at": round(sample.at - samples[0].at, 2), "segments": sample.segments}
        | {role: asdict(held) for role, held in sample.held.items()}
        for sample in samples
    ]
