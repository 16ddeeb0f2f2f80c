"""A client's request on its way through the host, free of Triton's types."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from fmplex_backend.arrays import Array
from fmplex_backend.encoders.base import EncodedRow
from fmplex_backend.errors import FMplexError
from fmplex_backend.host.log import Concerned
from fmplex_backend.messages import identity
from fmplex_backend.repository.artifact import STEPWISE
from fmplex_backend.repository.sockets import output_name
from fmplex_backend.scheduling.interface import Row

if TYPE_CHECKING:
    from fmplex_backend.host.generations import Generation

Reply = Mapping[str, Array] | FMplexError
"""Answers by output name, or the error instead of them."""


@dataclass(frozen=True)
class Ask:
    """What came in: copied out of Triton's buffers, which are gone once ``execute`` returns."""

    outputs: frozenset[str]
    """Names of the physical FM's outputs that are asked for."""
    inputs: Mapping[str, Array]
    """Input name → [rows, …]; BYTES are object arrays of bytes."""
    respond: Callable[[Reply], None]
    """Sends the one reply; called exactly once, from any thread, unless the request is refused when it is taken."""
    timeout: float | None = None
    """Seconds that the client gives it."""
    token: str | None = None
    """See `fmplex_backend.host.access`."""
    request_id: str = ""
    """The client's own."""


@dataclass(eq=False)
class Member:
    """The part of a request that one vFM answers; a bundle's request has several."""

    generation: Generation
    port: int
    sockets: frozenset[str]
    answers: list[RowAnswer | None]
    steps: Sequence[int | None] = ()
    """Of each row, where it is a series."""

    @classmethod
    def of(cls, generation: Generation, port: int, sockets: frozenset[str], rows: Sequence[EncodedRow]) -> Member:
        """One that waits for the answers to ``rows``."""
        return cls(generation, port, sockets, [None] * len(rows), [row.steps for row in rows])


@dataclass(frozen=True)
class RowAnswer:
    """One row's answers, as a place in its batch's columns."""

    columns: Mapping[str, Any]
    index: int
    provenance: Mapping[str, Any]


@dataclass(eq=False)
class RowTask:
    """What a scheduled row stands for: the payload of `Row`."""

    request: Pending
    member: Member
    position: int
    encoded: EncodedRow
    deaths: int = 0
    """Engines that died while they ran it; see `fmplex_backend.host.suspects`."""
    deaths_alone: int = 0
    """Of these, while they ran nothing else, and it was a suspect."""

    @property
    def concerned(self) -> Concerned:
        """As the log names it."""
        generation = self.member.generation
        return Concerned(self.request.ask.request_id, generation.vfm, generation.version)

    def row(self, vfm: str, deadline: float | None) -> Row:
        """As the queue of ``vfm`` takes it: same adapter and same tokens are twins."""
        generation = self.member.generation
        adapter = generation.number if generation.artifact.adapter else None
        twin = (adapter, *identity(self.encoded.tokens))
        return Row(vfm, self.encoded.size + generation.virtual_tokens, self, deadline, adapter, twin)


@dataclass(eq=False)
class Pending:
    """A request whose rows are under way. Changed only under the dispatcher's lock."""

    ask: Ask
    members: list[Member]
    rows: list[Row] = field(default_factory=list)
    remaining: int = 0
    error: FMplexError | None = None
    failed: RowTask | None = None
    """The row that it failed with."""
    arrived: float = field(default_factory=time.monotonic)
    """When it came; on the monotonic clock."""

    def answer(self, task: RowTask, answer: RowAnswer) -> bool:
        """Note one row's answer; True when it was the last and the reply can be made."""
        task.member.answers[task.position] = answer
        self.remaining -= 1
        return self.remaining == 0 and self.error is None

    def fail(self, error: FMplexError, task: RowTask) -> bool:
        """Note that the request fails, by ``task``; True the first time, when the reply can be made."""
        if self.error is not None:
            return False
        self.error, self.failed = error, task
        return True

    def reply(self) -> Reply:
        """Put the rows' answers together: output name → [rows, …], shorter rows padded with 0 or an empty text."""
        if self.error is not None:
            return self.error
        return {
            output_name(member.port, socket): _assemble(member, socket)
            for member in self.members
            for socket in member.sockets
        }


def _assemble(member: Member, socket: str) -> Array:
    answers = [answer for answer in member.answers if answer is not None]
    if socket == "info":
        return np.array([[json.dumps(a.provenance).encode()] for a in answers], dtype=object)
    values = [answer.columns[socket][answer.index] for answer in answers]
    if socket == "matrix" and member.generation.artifact.kind in STEPWISE:
        # What is in front of a series' own steps was filled up.
        return _stacked([value[:, -(steps or 0) :] for value, steps in zip(values, member.steps, strict=True)])
    if socket == "text":
        width = max(1, *(len(v) for v in values)) if values else 1
        rows = [[label.encode() for label in v] + [b""] * (width - len(v)) for v in values]
        return np.array(rows, dtype=object).reshape(len(rows), width)
    return _stacked(values)


def _stacked(values: Sequence[Array]) -> Array:
    """[rows, …], smaller ones padded with 0 behind."""
    whole = tuple(map(max, zip(*(value.shape for value in values), strict=True)))
    if all(value.shape == whole for value in values):
        stacked: Array = np.stack(values)
        return stacked
    padded = np.zeros((len(values), *whole), np.float32)
    for row, value in enumerate(values):
        padded[(row, *map(slice, value.shape))] = value
    return padded


def provenance(task: RowTask, rows: int, vfms: int, queued: float, computed: float) -> dict[str, Any]:
    """What ``info`` tells of one row's answer: who gave it, in a batch of how many, and how long it took (seconds)."""
    generation = task.member.generation
    info: dict[str, Any] = {
        "vfm": generation.vfm,
        "version": generation.version,
        "generation": generation.number,
        "backbone": generation.artifact.backbone.fingerprint,
        "batch_rows": rows,
        "batch_vfms": vfms,
        "queue_us": round(queued * 1e6),
        "compute_us": round(computed * 1e6),
    }
    if generation.artifact.kind == "token_classification":
        info["offsets"] = task.encoded.offsets
    return info
