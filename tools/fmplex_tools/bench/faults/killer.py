"""Faults that are done to engines, and how long until requests are answered again."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Mapping

import numpy as np

from fmplex_tools.bench.fair.arena import Arena
from fmplex_tools.bench.fair.bench import Figure

KINDS: Mapping[str, signal.Signals] = {
    "killed": signal.SIGKILL,
    "aborted": signal.SIGABRT,
    "hanging": signal.SIGSTOP,
    "device fault": signal.SIGUSR1,
    "out of memory": signal.SIGUSR2,
}
"""What happens to an engine, and the signal that does it; see `fmplex_backend.engine.faults` for the last two."""
LATEST = 60.0
"""A fault that has no recovery within so many seconds counts as that long."""
P50_GOAL, P99_GOAL = 1.5, 5.0


class Killer:
    """Used in one event loop. A fault's recovery is over when a request that was sent after it is answered."""

    def __init__(self, made: Arena) -> None:
        """Engines of ``made`` must have been started with simulated faults; see `simulated`."""
        self._made = made
        self._waiting: list[tuple[float, asyncio.Future[float]]] = []
        """When a fault was, and its recovery."""
        self.recoveries: dict[str, list[float]] = {}
        """Kind → seconds, one entry a fault."""

    async def fault(self, kind: str, chance: random.Random) -> None:
        """Do one of `KINDS` to any engine, and wait until it is over."""
        status = await asyncio.to_thread(self._made.status)
        recovered: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        now = time.monotonic()
        os.kill(chance.choice([pid for pid in status["engine_pids"] if pid is not None]), KINDS[kind])
        self._waiting.append((now, recovered))
        try:
            seconds = await asyncio.wait_for(recovered, LATEST)
        except asyncio.TimeoutError:
            seconds = LATEST
        self.recoveries.setdefault(kind, []).append(seconds)

    def answered(self, sent: float) -> None:
        """A request that was sent at ``sent``, on the monotonic clock, was answered just now."""
        still = []
        for at, recovered in self._waiting:
            if sent <= at:
                still.append((at, recovered))
            elif not recovered.done():
                recovered.set_result(time.monotonic() - at)
        self._waiting = still

    def figures(self, *, promised: bool = True) -> list[Figure]:
        """Recoveries of all faults, with goals where something is ``promised``, and of each kind."""
        part, everything = "recovery", [seconds for kind in self.recoveries.values() for seconds in kind]
        if not everything:
            return [Figure(part, "faults", 0)]
        p50, p99 = np.percentile(everything, (50, 99))
        figures = []
        for title, seconds, most in ((f"p50 of {len(everything)}", p50, P50_GOAL), ("p99", p99, P99_GOAL)):
            goal = (f"≤ {most:g} s", bool(seconds <= most)) if promised else ()
            figures.append(Figure(part, title, float(seconds), "s", *goal))
        for kind, took in self.recoveries.items():
            told = f"s (p50; longest {max(took):.2f}, {len(took)} times)"
            figures.append(Figure(part, kind, float(np.median(took)), told))
        return figures
