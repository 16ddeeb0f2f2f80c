"""What is counted of a physical FM and of a vFM, and as which Prometheus series it is told.

`FM_SERIES` and `VFM_SERIES` are the whole list. Counters only grow; a histogram is made of counters. A vFM takes at
most 6 KB here, however much it has done.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from fmplex_backend.errors import DeadlineExceeded, FMplexError, InvalidInput, Unavailable

WINDOW = 2.0
"""Seconds over which shares of the device are taken."""
LATENCY_EDGES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
ROW_EDGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
VFM_EDGES = (1, 2, 4, 8, 16, 32, 64)

Outcome = Literal["served", "rejected", "expired", "failed", "invalid", "cancelled"]
REQUEST_OUTCOMES: tuple[Outcome, ...] = ("served", "rejected", "expired", "failed", "invalid")
ROW_OUTCOMES: tuple[Outcome, ...] = (*REQUEST_OUTCOMES, "cancelled")
REJECTIONS = ("queue_full", "rate_limit", "fm_full")
EXPIRIES = ("passed", "unreachable")


def outcome_of(error: FMplexError | None) -> Outcome:
    """How a request ended that was answered with ``error``, or with none."""
    if error is None:
        return "served"
    outcomes: tuple[tuple[type[FMplexError], Outcome], ...] = (
        (DeadlineExceeded, "expired"),
        (Unavailable, "rejected"),
        (InvalidInput, "invalid"),
    )
    return next((outcome for kind, outcome in outcomes if isinstance(error, kind)), "failed")


class Histogram:
    """Counts of values up to each edge, and their sum."""

    __slots__ = ("counts", "edges", "sum")

    def __init__(self, edges: Sequence[float]) -> None:
        self.edges = edges
        self.counts = [0] * (len(edges) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value; one that is equal to an edge is within it."""
        self.counts[bisect_left(self.edges, value)] += 1
        self.sum += value

    def up_to(self, index: int) -> int:
        """How many values are within edge ``index``; the index after the last is infinity."""
        return sum(self.counts[: index + 1])

    @property
    def count(self) -> int:
        """Of all values."""
        return sum(self.counts)


class VfmCounts:
    """What is counted of one vFM."""

    __slots__ = (
        "device",
        "entitled",
        "expired",
        "latency",
        "number",
        "objective",
        "quarantined",
        "queued",
        "ran",
        "rejected",
        "requests",
        "rows",
        "running",
        "share",
        "slo_met",
        "slo_missed",
        "told",
        "touched",
        "waiting",
        "weight",
    )

    def __init__(self, number: int) -> None:
        self.number = number
        self.weight = 1.0
        self.objective: float | None = None
        self.rows: dict[str, int] = dict.fromkeys(ROW_OUTCOMES, 0)
        self.requests: dict[str, int] = dict.fromkeys(REQUEST_OUTCOMES, 0)
        self.rejected = dict.fromkeys(REJECTIONS, 0)
        self.expired = dict.fromkeys(EXPIRIES, 0)
        self.latency = Histogram(LATENCY_EDGES)
        self.queued = 0.0
        self.ran = 0.0
        self.device = 0.0
        self.slo_met = self.slo_missed = 0
        self.running = self.waiting = 0
        self.share = self.entitled = 0.0
        self.quarantined = False
        self.touched = True
        """Something happened since ``told`` was read."""
        self.told: list[float] = []


class FmCounts:
    """What is counted of the physical FM as a whole."""

    def __init__(self, engines: int) -> None:
        self.engines = engines
        self.vfms = 0
        self.rows = Histogram(ROW_EDGES)
        self.mixed = Histogram(VFM_EDGES)
        self.measured = self.predicted = self.busy = 0.0
        self.deaths = self.lost = self.unroutable = 0
        self.useful = self.padding = 0
        self.decisions = self.submits = 0
        self.deciding = self.submitting = 0.0
        self.slowest = self.slowest_before = 0.0
        """Of the decisions in this window and in the one before."""
        self.turned = -math.inf
        """When this window began."""
        self.error = 0.0
        self.told_at = 0.0

    @property
    def slowest_lately(self) -> float:
        return max(self.slowest, self.slowest_before)

    def turn(self, now: float) -> None:
        """Begin a new window where this one is over."""
        if now >= self.turned + WINDOW:
            self.slowest_before, self.slowest, self.turned = self.slowest, 0.0, now


# ---- which series there are ----

Kind = Literal["counter", "gauge"]
_T = TypeVar("_T")
_Read = Callable[[Any], _T]
"""Reads a value off a `VfmCounts` or an `FmCounts`."""


@dataclass(frozen=True)
class Series:
    """One line of an exposition, but for the labels ``fm`` and ``vfm``, which are the reader's."""

    name: str
    kind: Kind
    help: str
    labels: Mapping[str, str]
    read: Callable[[Any], float]
    block: int
    """Series of one block belong together: they begin to exist when the first of them is not zero."""


class _Layout:
    """Collects series, block by block."""

    def __init__(self) -> None:
        self.series: list[Series] = []
        self._blocks = 0

    def add(
        self, name: str, help: str, read: _Read[float], labels: Mapping[str, str] | None = None, *, joined: bool = False
    ) -> None:
        """A series whose kind its name tells; ``joined`` to the block of the one before."""
        kind: Kind = "counter" if name.endswith(("_total", "_sum", "_count", "_bucket")) else "gauge"
        self._blocks += not joined
        self.series.append(Series(name, kind, help, labels or {}, read, self._blocks))

    def by(self, name: str, help: str, label: str, values: Iterable[str], read: _Read[Mapping[str, float]]) -> None:
        """A series for each value of ``label``."""

        def of(value: str) -> _Read[float]:
            return lambda state: read(state)[value]

        for value in values:
            self.add(name, help, of(value), {label: value})

    def summed(self, name: str, help: str, total: _Read[float], count: _Read[float]) -> None:
        """A sum and how many values are in it."""
        self.add(f"{name}_sum", help, total)
        self.add(f"{name}_count", help, count, joined=True)

    def histogram(self, name: str, help: str, edges: Sequence[float], read: _Read[Histogram]) -> None:
        """As Prometheus has it: cumulative buckets, sum and count."""

        def up_to(index: int) -> _Read[float]:
            return lambda state: read(state).up_to(index)

        self.summed(name, help, lambda state: read(state).sum, lambda state: read(state).count)
        for index, edge in enumerate((*edges, math.inf)):
            le = "+Inf" if edge == math.inf else f"{edge:g}"
            self.add(f"{name}_bucket", help, up_to(index), {"le": le}, joined=True)


def _vfm_series() -> tuple[Series, ...]:
    made = _Layout()
    made.add("fmplex_weight", "Weight of the vFM's policy.", lambda v: v.weight)
    made.by("fmplex_requests_total", "Requests by how they ended.", "outcome", REQUEST_OUTCOMES, lambda v: v.requests)
    made.by("fmplex_rows_total", "Rows by how they ended.", "outcome", ROW_OUTCOMES, lambda v: v.rows)
    made.by("fmplex_rejections_total", "Rejected requests by reason.", "reason", REJECTIONS, lambda v: v.rejected)
    made.by("fmplex_expiries_total", "Expired rows by reason.", "reason", EXPIRIES, lambda v: v.expired)
    made.histogram(
        "fmplex_request_seconds",
        "From a request's arrival at the host to its reply being sent; served requests.",
        LATENCY_EDGES,
        lambda v: v.latency,
    )
    made.summed(
        "fmplex_row_queue_seconds",
        "From a row's arrival in the queue to the start of its batch; served rows.",
        lambda v: v.queued,
        lambda v: v.rows["served"],
    )
    made.summed(
        "fmplex_row_compute_seconds",
        "From the start of a row's batch to its end; served rows.",
        lambda v: v.ran,
        lambda v: v.rows["served"],
    )
    made.add("fmplex_device_seconds_total", "Device time charged.", lambda v: v.device)
    made.add("fmplex_share_ratio", "Part of the device time charged lately.", lambda v: v.share)
    made.add(
        "fmplex_entitled_share_ratio", "Weight over the weights of all active vFMs.", lambda v: v.entitled, joined=True
    )
    made.add(
        "fmplex_quarantined", "1 while no row of the vFM is run: one killed engines.", lambda v: float(v.quarantined)
    )
    made.add("fmplex_queue_rows", "Rows that wait.", lambda v: v.waiting)
    made.add("fmplex_running_rows", "Rows in batches that run.", lambda v: v.running)
    made.add("fmplex_slo_seconds", "Latency objective of the vFM's policy.", lambda v: v.objective or 0.0)
    help = "Requests within (met) and not within (missed) the latency objective; not those rejected or invalid."
    made.add("fmplex_slo_requests_total", help, lambda v: v.slo_met, {"result": "met"})
    made.add("fmplex_slo_requests_total", help, lambda v: v.slo_missed, {"result": "missed"}, joined=True)
    return tuple(made.series)


def _fm_series() -> tuple[Series, ...]:
    made = _Layout()
    made.add("fmplex_engines", "Engines of the physical FM.", lambda f: f.engines)
    made.add("fmplex_vfms", "vFMs that are served.", lambda f: f.vfms)
    made.histogram("fmplex_batch_rows", "Rows in a batch.", ROW_EDGES, lambda f: f.rows)
    made.histogram("fmplex_batch_vfms", "Distinct vFMs in a batch.", VFM_EDGES, lambda f: f.mixed)
    made.add("fmplex_batch_seconds_total", "Device time of batches, as measured.", lambda f: f.measured)
    made.add("fmplex_batch_predicted_seconds_total", "Device time of batches, as predicted.", lambda f: f.predicted)
    made.add("fmplex_engine_busy_seconds_total", "Time that engines had a batch.", lambda f: f.busy)
    made.add("fmplex_engine_deaths_total", "Engines that ended and were started anew.", lambda f: f.deaths)
    made.add("fmplex_lost_batches_total", "Batches whose engine died.", lambda f: f.lost)
    made.add("fmplex_useful_tokens_total", "Tokens of rows that ran.", lambda f: f.useful)
    made.add(
        "fmplex_padding_tokens_total", "Padding up to the longest row of a batch.", lambda f: f.padding, joined=True
    )
    made.summed("fmplex_decision_seconds", "Deciding on a batch.", lambda f: f.deciding, lambda f: f.decisions)
    made.add("fmplex_decision_seconds_max", "Slowest decision lately.", lambda f: f.slowest_lately, joined=True)
    made.summed("fmplex_submit_seconds", "Queueing a request's rows.", lambda f: f.submitting, lambda f: f.submits)
    made.add(
        "fmplex_cost_error_ratio",
        "Lately, |predicted - measured| / measured of a batch's device time.",
        lambda f: f.error,
    )
    made.add("fmplex_unroutable_requests_total", "Requests for no vFM that is served.", lambda f: f.unroutable)
    made.add("fmplex_snapshot_timestamp_seconds", "When these values were read.", lambda f: f.told_at)
    return tuple(made.series)


VFM_SERIES = _vfm_series()
FM_SERIES = _fm_series()
