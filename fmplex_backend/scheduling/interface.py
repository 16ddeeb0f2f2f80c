"""What every scheduling policy is: a queue that decides which rows run together next.

Pure: no torch, no Triton, no threads and no clock. ``now`` is an argument, in seconds of any one clock. The caller owns
the queue and calls it from one thread at a time; the queue decides, the caller acts on what it returns.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Literal

RowState = Literal["new", "waiting", "running", "served", "rejected", "expired", "cancelled"]


@dataclass(eq=False, slots=True)
class Row:
    """One item of a request's batch dimension: the unit that is scheduled."""

    vfm: str
    size: int
    """Length, in what the backbone counts: tokens."""
    payload: Any
    """The caller's; not looked at."""
    deadline: float | None = None
    """Absolute; a row that has not started by then is not run."""
    submitted: float = 0.0
    state: RowState = "new"


@dataclass(frozen=True, slots=True)
class VfmPolicy:
    """What a queue knows of a vFM."""

    weight: float = 1.0
    max_queue_size: int = 512
    """Most rows that may wait."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows to run together, in the order in which they were taken."""

    number: int
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to be done now: answer ``expired`` with an error, run ``batch`` if there is one."""

    batch: Batch | None
    expired: list[Row] = field(default_factory=list)


class QueueFull(Exception):
    """The vFM's queue has no room for ``rows`` more; ``waiting`` are in it, ``limit`` is its size."""

    def __init__(self, vfm: str, rows: int, waiting: int, limit: int) -> None:
        super().__init__(f"vFM {vfm!r}: no room for {rows} more rows in its queue, {waiting} of {limit} wait")
        self.vfm, self.rows, self.waiting, self.limit = vfm, rows, waiting, limit

    @property
    def hopeless(self) -> bool:
        """Whether even an empty queue would have no room."""
        return self.rows > self.limit


class Queue(ABC):
    """The contract. A row ends in exactly one of served, rejected, expired, cancelled."""

    @abstractmethod
    def add_vfm(self, vfm: str, policy: VfmPolicy) -> None:
        """Make ``vfm`` known. Raises ValueError where it is known already."""

    @abstractmethod
    def change_vfm(self, vfm: str, policy: VfmPolicy) -> None:
        """Give ``vfm`` another policy; rows that wait stay. Raises KeyError where it is not known."""

    @abstractmethod
    def remove_vfm(self, vfm: str) -> None:
        """Forget ``vfm`` once its waiting rows have run; until then they keep their places."""

    @abstractmethod
    def submit(self, rows: list[Row], now: float) -> None:
        """Take the rows of one request of one vFM, all or none. Raises `QueueFull`, and KeyError for an unknown vFM."""

    @abstractmethod
    def cancel(self, row: Row) -> bool:
        """Give up a waiting row; False where it runs already or has ended."""

    @abstractmethod
    def next_batch(self, now: float) -> Decision:
        """Decide the next batch. Rows of it are running from here on, until `complete` or `put_back`."""

    @abstractmethod
    def complete(self, batch: Batch, measured: float, now: float) -> None:
        """``batch`` ran and took ``measured`` seconds of device time."""

    @abstractmethod
    def put_back(self, batch: Batch, now: float) -> None:
        """``batch`` did not run to its end (its engine died): its rows wait again, ahead of all others."""

    @abstractmethod
    def waiting(self, vfm: str | None = None) -> int:
        """Rows that wait, of one vFM or of all."""
