"""The plain messages in which host and engine talk, one at a time, over one socket.

Host → engine            answered by
`LoadGeneration`         `GenerationLoaded`
`DropGeneration`         `GenerationDropped`
`PinGeneration`          `GenerationPinned`
`RunBatch`               `BatchDone`
`Measure`                `Measured`
`Ping`                   `Pong`
(none, on start)         `EngineReady` or `EngineFailed`

An engine that cannot go on closes the socket. Nothing here imports torch or Triton.
"""

from __future__ import annotations

import struct
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np

from fmplex_backend.arrays import Array
from fmplex_backend.backbones.facts import BackboneFacts

PROCESS_NUMBER = struct.Struct("<i")
"""What a fork server tells of an engine: its process id, and later its exit code, minus the signal's number for one
that was killed."""

SIMULATED_FAULTS = "FMPLEX_SIMULATED_FAULTS"
"""Environment variable by which engines can be made to fail; see `fmplex_backend.engine.faults`."""

Tokens = dict[str, Array]
"""One row for the backbone: input name → array without a batch dimension, e.g. ``input_ids`` int32 [tokens]."""

_SMALL = 1024
"""Bytes up to which an array is its own identity."""


def identity(tokens: Tokens) -> Iterator[Hashable]:
    """Equal for rows that are the same to the backbone, and for no others; of a large array, a digest of 128 bits."""
    for array in tokens.values():
        if array.nbytes <= _SMALL:
            yield array.tobytes()
        else:
            yield blake2b(np.ascontiguousarray(array).data, digest_size=16).digest()
        if array.ndim > 1:
            yield array.shape


Column = Any
"""Answers of several rows of one vFM for one socket: a numeric array [rows, …], or where rows differ in length a list
with one array a row, or for ``text`` a list of lists of str."""


@dataclass(frozen=True)
class DeviceFacts:
    """What an engine computes on, as far as it decides what a batch costs."""

    name: str
    """Of the processor or the GPU, as it calls itself."""
    threads: int
    """Compute threads of a CPU; 0 on a GPU."""
    software: str
    """Versions of what runs the backbone."""


@dataclass(frozen=True)
class EngineReady:
    """The engine holds the backbone and takes messages."""

    facts: BackboneFacts
    device: DeviceFacts
    pid: int
    seconds: float
    """From process start to here."""


@dataclass(frozen=True)
class EngineFailed:
    """The engine cannot start; it ends after this."""

    error: str


@dataclass(frozen=True)
class LoadGeneration:
    """Take a vFM's packed generation (see `fmplex_backend.repository.packed`) from ``path``."""

    generation: int
    vfm: str
    version: int
    path: str
    pinned: bool = False
    """Whether its adapter keeps its slot; see `PinGeneration`."""


@dataclass(frozen=True)
class GenerationLoaded:
    """``error`` is None, or says why the generation cannot be served; then nothing was kept of it."""

    generation: int
    error: str | None
    n_bytes: int = 0
    """What it occupies on the engine's device."""


@dataclass(frozen=True)
class DropGeneration:
    """Forget a generation; no later batch names it."""

    generation: int


@dataclass(frozen=True)
class GenerationDropped:
    """The generation's slot is zeroed and free."""

    generation: int


@dataclass(frozen=True)
class PinGeneration:
    """Let a generation's adapter keep its slot, whoever else needs one, or no longer."""

    generation: int
    pinned: bool


@dataclass(frozen=True)
class GenerationPinned:
    """``error`` says why the generation cannot be pinned."""

    generation: int
    error: str | None


@dataclass(frozen=True)
class RunBatch:
    """Rows to run together. ``generations[i]`` is the generation that answers ``rows[i]``."""

    batch: int
    generations: list[int]
    rows: list[Tokens]
    upcoming: list[int] = field(default_factory=list)
    """Generations whose rows wait, without a slot: what should be brought nearer."""

    def __reduce__(self) -> Any:
        """Pickled with all rows' sequences of one name end to end: a fifth of the time that many small arrays take."""
        names = dict.fromkeys(name for row in self.rows for name, array in row.items() if array.ndim == 1)
        joined = {name: _join([row.get(name) for row in self.rows]) for name in names}
        others = [{name: array for name, array in row.items() if name not in joined} for row in self.rows]
        return _run_batch, (self.batch, self.generations, others, joined, self.upcoming)


def _join(parts: list[Array | None]) -> tuple[Array, Array]:
    """The arrays end to end, and how long each is; -1 for none."""
    lengths = np.array([-1 if part is None else len(part) for part in parts], np.int32)
    return np.concatenate([part for part in parts if part is not None]), lengths


def _run_batch(
    batch: int, generations: list[int], rows: list[Tokens], joined: dict[str, tuple[Array, Array]], upcoming: list[int]
) -> RunBatch:
    for name, (whole, lengths) in joined.items():
        start = 0
        for row, length in zip(rows, lengths.tolist(), strict=True):
            if length >= 0:
                row[name] = whole[start : start + length]
                start += length
    return RunBatch(batch, generations, rows, upcoming)


@dataclass(frozen=True)
class GroupAnswer:
    """Answers of the rows of one generation in a batch."""

    generation: int
    rows: list[int]
    """Their places in the batch."""
    columns: dict[str, Column]
    """Socket → answers, in the order of ``rows``."""
    errors: dict[int, str] = field(default_factory=dict)
    """Place in the batch → why this row has no answer; its entry in ``columns`` is void."""


@dataclass(frozen=True)
class BatchDone:
    """Every row of the batch is in exactly one group."""

    batch: int
    groups: list[GroupAnswer]
    seconds: float
    """Device time from collating to the last answer."""
    installed: list[int] = field(default_factory=list)
    """Generations whose adapters came into slots for it."""
    evicted: list[int] = field(default_factory=list)
    """Those that lost theirs."""
    fitting: int | None = None
    """Rows of the largest part that ran, where the whole batch did not fit into the device's memory."""


@dataclass(frozen=True)
class Measure:
    """Measure what batches cost, on no vFM's account; nothing of it stays in the engine."""

    max_rows: int
    """Most rows in a batch."""
    seconds: float
    """About how long it may take; what would take longer is left out."""


@dataclass(frozen=True)
class Point:
    """A batch of ``rows`` rows of ``vfms`` distinct vFMs, the longest of ``length`` tokens, took ``seconds``."""

    rows: int
    length: int
    vfms: int
    seconds: float
    """Of device time, as in `BatchDone`."""


@dataclass(frozen=True)
class Measured:
    """At least one point; the least of each that was measured several times, since noise only adds."""

    points: list[Point]
    seconds: float
    """How long it took."""


@dataclass(frozen=True)
class Ping:
    """Is anybody there? Answered between two batches."""


@dataclass(frozen=True)
class Pong:
    """Yes."""
