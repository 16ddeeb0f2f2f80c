"""What every scheduling policy is: a queue that decides which rows run together next.

Pure: no torch, no Triton, no threads and no clock. ``now`` is an argument, in seconds of any one clock. The caller owns
the queue and calls it from one thread at a time; the queue decides, the caller acts on what it returns.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Container, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from fmplex_backend.scheduling.cost import CostModel

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
    adapter: Hashable | None = None
    """What must be in one of the device's slots for it to run."""
    twin: Hashable | None = None
    """Rows with the same are the same to the backbone, and run once where they share a batch."""
    submitted: float = 0.0
    """Set by the queue, as is all below."""
    state: RowState = "new"
    number: int = 0
    """Order of arrival in its queue."""
    due: float = float("inf")
    """Absolute; the earlier of its deadline and what its vFM's latency objective asks for."""


@dataclass(frozen=True, slots=True)
class VfmPolicy:
    """What a queue knows of a vFM. Limits of None do not apply."""

    weight: float = 1.0
    max_queue_size: int = 512
    """Most rows that may wait."""
    max_rows_in_flight: int | None = None
    """Most rows in batches that run."""
    latency_slo: float | None = None
    """Seconds from submission within which its rows should be answered."""
    rate: float | None = None
    """Rows a second that may be submitted, on average."""
    burst: int = 1
    """Rows that may be submitted at once after a pause; used with ``rate``."""


@dataclass(frozen=True, slots=True)
class Share:
    """One vFM's part in a batch."""

    rows: int
    """Its rows, each twin by itself."""
    fraction: float
    """Of the batch's device time; the fractions of a batch sum to one."""
    tentative: float = 0.0
    """Seconds of device time that were charged while its rows were taken, before the batch was known."""
    largest: float = 0.0
    """The largest such charge for one row."""
    weight: float = 1.0
    """At the time of the batch."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows to run together, in the order in which they were taken."""

    number: int
    rows: tuple[Row, ...]
    predicted: float = 0.0
    """Seconds of device time that it should take."""
    shares: Mapping[str, Share] = field(default_factory=dict)
    physical_rows: int = 0
    """What the backbone runs: its rows, twins counted once."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to be done now: answer ``expired`` with an error, run ``batch`` if there is one.

    ``wake_at`` is the next deadline of a row that waits: call `Queue.expire` then, if nothing was decided before.
    """

    batch: Batch | None
    expired: list[Row] = field(default_factory=list)
    wake_at: float | None = None


class Rejected(Exception):
    """The rows of one request were not taken; the message says why. ``wait``: seconds until it may go better."""

    parameter: ClassVar[str] = ""
    """That would have to be larger."""
    reason: ClassVar[str] = ""
    """In a word, for who counts."""

    def __init__(self, message: str, vfm: str, rows: int, limit: int, wait: float) -> None:
        super().__init__(message)
        self.vfm, self.rows, self.limit, self.wait = vfm, rows, limit, wait

    @property
    def hopeless(self) -> bool:
        """Whether so many rows at once will never be taken."""
        return self.rows > self.limit


class QueueFull(Rejected):
    """The vFM's queue has no room for ``rows`` more; ``waiting`` are in it, ``limit`` is its size."""

    parameter, reason = "max_queue_size", "queue_full"

    def __init__(self, vfm: str, rows: int, waiting: int, limit: int, wait: float) -> None:
        message = f"vFM {vfm!r}: no room for {rows} more rows in its queue, {waiting} of {limit} wait"
        super().__init__(message, vfm, rows, limit, wait)
        self.waiting = waiting


class RateExceeded(Rejected):
    """The vFM has had more rows than its rate limit allows; ``limit`` is the most at once."""

    parameter, reason = "rate_limit_rows_per_second", "rate_limit"

    def __init__(self, vfm: str, rows: int, rate: float, burst: int, wait: float) -> None:
        message = f"vFM {vfm!r}: {rows} more rows exceed its rate limit of {rate:g} rows/s (bursts of {burst})"
        super().__init__(message, vfm, rows, burst, wait)
        self.rate = rate


class AllFull(Rejected):
    """All vFMs together have no room, and this one has its even part of it already; ``limit`` is what all may have."""

    parameter, reason = "max_waiting_rows", "fm_full"

    def __init__(self, vfm: str, rows: int, waiting: int, all_waiting: int, limit: int, wait: float) -> None:
        whose = f"{all_waiting} of {limit} wait in all, {waiting} of them are its own"
        super().__init__(f"vFM {vfm!r}: no room for {rows} more rows, {whose}", vfm, rows, limit, wait)


class Queue(ABC):
    """The contract. A row ends in exactly one of served, rejected, expired, cancelled."""

    max_batch_rows: int
    """That a batch has at most."""

    @abstractmethod
    def add_vfm(self, vfm: str, policy: VfmPolicy, now: float) -> None:
        """Make ``vfm`` known. Raises ValueError where it is known already."""

    @abstractmethod
    def change_vfm(self, vfm: str, policy: VfmPolicy, now: float) -> None:
        """Give ``vfm`` another policy; rows that wait stay. Raises KeyError where it is not known."""

    @abstractmethod
    def remove_vfm(self, vfm: str) -> None:
        """Forget ``vfm`` once its waiting rows have run; until then they keep their places. KeyError as above."""

    @abstractmethod
    def change_cost(self, cost: CostModel) -> None:
        """Predict and charge by another cost model from the next decision on."""

    @abstractmethod
    def change_slots(self, slots: int) -> None:
        """Take no more than so many adapters into a batch from the next decision on."""

    @abstractmethod
    def change_max_batch_rows(self, rows: int) -> None:
        """Take no more than so many rows into a batch from the next decision on."""

    @abstractmethod
    def check(self, vfm: str, rows: int, now: float) -> None:
        """Raise what `submit` would raise for so many rows; changes nothing. For who would refuse before working."""

    @abstractmethod
    def submit(self, rows: list[Row], now: float) -> None:
        """Take the rows of one request of one vFM, all or none. Raises `Rejected`, and KeyError for an unknown vFM."""

    @abstractmethod
    def cancel(self, row: Row) -> bool:
        """Give up a waiting row; False where it runs already or has ended."""

    @abstractmethod
    def rows_of(self, vfm: str) -> list[Row]:
        """Its rows that wait; takes time in proportion to all rows that do."""

    @abstractmethod
    def next_batch(self, now: float, resident: Container[Hashable] | None = None) -> Decision:
        """Decide the next batch. Rows of it are running from here on, until `complete` or `put_back`.

        ``resident``: adapters that are in slots of the device that asks; others have to be brought there. None where
        it makes no difference.
        """

    @abstractmethod
    def upcoming(self, limit: int) -> list[Hashable]:
        """Adapters that the next batches should need, at most so many; a guess that costs O(limit)."""

    @abstractmethod
    def expire(self, now: float) -> Decision:
        """Find the rows whose deadline cannot be met any more; `next_batch` does so too. Decides no batch."""

    @abstractmethod
    def complete(self, batch: Batch, measured: float, now: float) -> Mapping[str, float]:
        """``batch`` ran and took ``measured`` seconds of device time: what each vFM in it is charged, in seconds.

        The charges sum to ``min(measured, 3 * batch.predicted)``: a hiccup of the machine is nobody's use of it.
        """

    @abstractmethod
    def put_back(self, batch: Batch, now: float) -> None:
        """``batch`` did not run to its end (its engine died): its rows wait again, ahead of all others of their vFMs.

        The caller may leave out rows that it has ended; nobody is charged.
        """

    @abstractmethod
    def drain(self) -> list[Row]:
        """End the queue: every row that waits, whatever else holds it back. They count as running from here on."""

    @abstractmethod
    def waiting(self, vfm: str | None = None) -> int:
        """Rows that wait, of one vFM or of all."""
