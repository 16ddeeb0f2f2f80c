"""The plain messages in which host and engine talk, one at a time, over one socket.

Host → engine            answered by
`LoadGeneration`         `GenerationLoaded`
`DropGeneration`         `GenerationDropped`
`RunBatch`               `BatchDone`
`Measure`                `Measured`
(none, on start)         `EngineReady` or `EngineFailed`

An engine that cannot go on closes the socket. Nothing here imports torch or Triton.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fmplex_backend.arrays import Array
from fmplex_backend.backbones.facts import BackboneFacts

Tokens = dict[str, Array]
"""One row for the backbone: input name → array without a batch dimension, e.g. ``input_ids`` int32 [tokens]."""

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
class RunBatch:
    """Rows to run together. ``generations[i]`` is the generation that answers ``rows[i]``."""

    batch: int
    generations: list[int]
    rows: list[Tokens]


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
