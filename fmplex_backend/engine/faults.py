"""Simulated faults, for tests and benchmarks of what survives them. Nothing, unless the environment asks for it.

1. SIGUSR1: a fault of the device, after which an engine cannot go on.
2. SIGUSR2: the next batch of more than one row does not fit into memory.
3. A row with the token whose number is `SIMULATED_FAULTS` ends the process while its batch runs; 0 is for none.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

import numpy as np

from fmplex_backend.backbones.base import Features
from fmplex_backend.engine.worker import Prepared, Together, Worker
from fmplex_backend.messages import SIMULATED_FAULTS, BatchDone

_NONE = np.zeros(0)
"""The tokens of a row that is no text."""


class SimulatedFault(RuntimeError):
    """Of the device."""


def install(worker: Worker) -> None:
    """Let ``worker`` fail as the environment asks; call it in the main thread."""
    if (value := os.environ.get(SIMULATED_FAULTS)) is None:
        return
    print(f"fmplex: faults are simulated in this engine ({SIMULATED_FAULTS}={value})", flush=True)
    poison, run, forward, full = int(value), worker.run_prepared, worker._forward, [False]

    def fault(*_: object) -> None:
        raise SimulatedFault("CUDA error: a simulated fault of the device")

    def fill(*_: object) -> None:
        full[0] = True

    def run_prepared(prepared: Prepared, start: float | None = None) -> BatchDone:
        if poison and any((row.get("input_ids", _NONE) == poison).any() for row in prepared.message.rows):
            os.abort()
        return run(prepared, start)

    def limited(part: Together, generations: Sequence[int | None]) -> Features:
        if full[0] and len(generations) > 1:
            full[0] = False
            raise MemoryError("simulated")
        return forward(part, generations)

    signal.signal(signal.SIGUSR1, fault)
    signal.signal(signal.SIGUSR2, fill)
    worker.run_prepared, worker._forward = run_prepared, limited  # type: ignore[method-assign]
