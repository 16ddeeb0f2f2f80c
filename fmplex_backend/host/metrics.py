"""What a physical FM has done and is doing, counted as it happens and told as Prometheus series.

Events come from the dispatcher, the intake and the senders; each costs about a microsecond. `Meter.snapshot` reads
everything at once. Counters only grow, histograms are made of counters, and a removed vFM takes its series with it.

`FM_SERIES` and `VFM_SERIES` say which series there are. A vFM takes about 4 KB here, however much it has done.
"""

from __future__ import annotations

import math
import threading
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from fmplex_backend.errors import DeadlineExceeded, FMplexError, InvalidInput, Unavailable
from fmplex_backend.scheduling.interface import Batch, Row

WINDOW = 2.0
"""Seconds over which shares of the device are taken."""
SLICE = 64
"""vFMs that are read under one hold of the lock."""
LATENCY_EDGES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
ROW_EDGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
VFM_EDGES = (1, 2, 4, 8, 16, 32, 64)
ERROR_GAIN = 0.05
"""How much of the cost model's error one batch makes up."""

Outcome = Literal["served", "rejected", "expired", "failed", "invalid", "cancelled"]
REQUEST_OUTCOMES: tuple[Outcome, ...] = ("served", "rejected", "expired", "failed", "invalid")
ROW_OUTCOMES: tuple[Outcome, ...] = (*REQUEST_OUTCOMES, "cancelled")
REJECTIONS = ("queue_full", "rate_limit")
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


class _Vfm:
    """What is counted of one vFM."""

    __slots__ = (
        "device",
        "entitled",
        "expired",
        "latency",
        "number",
        "objective",
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
        self.touched = True
        """Something happened since ``told`` was read."""
        self.told: list[float] = []


class _Fm:
    """What is counted of the physical FM as a whole."""

    def __init__(self, engines: int) -> None:
        self.engines = engines
        self.vfms = 0
        self.rows = Histogram(ROW_EDGES)
        self.mixed = Histogram(VFM_EDGES)
        self.measured = self.predicted = self.busy = 0.0
        self.lost = self.unroutable = 0
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
"""Reads a value off a `_Vfm` or an `_Fm`."""


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


@dataclass(frozen=True)
class Snapshot:
    """Everything at one moment."""

    fm: list[float]
    """A value for each of `FM_SERIES`."""
    vfms: dict[tuple[str, int], list[float]]
    """vFM → a value for each of `VFM_SERIES`. A vFM that was removed and is there again has another number. A list
    that is the very one of the snapshot before has not changed."""

    def samples(self) -> Iterator[tuple[Series, str | None, float]]:
        """Every series, the vFM that it is of, and its value; in the order of the layout."""
        for series, value in zip(FM_SERIES, self.fm, strict=True):
            yield series, None, value
        for (vfm, _), values in self.vfms.items():
            for series, value in zip(VFM_SERIES, values, strict=True):
                yield series, vfm, value


# ---- the meter ----


class Meter:
    """See the module. Every method may be called from any thread; events of vFMs that are not known count nothing."""

    def __init__(self, engines: int = 1) -> None:
        self._lock = threading.Lock()
        self._vfms: dict[str, _Vfm] = {}
        self._fm = _Fm(engines)
        self._numbers = 0
        self._marks: deque[tuple[float, dict[int, float]]] = deque()
        """When, and what each vFM had been charged by then; the newest that is ``WINDOW`` old, and younger ones."""

    # ---- vFMs ----

    def set_policy(self, vfm: str, weight: float, objective: float | None) -> None:
        """Make ``vfm`` known, or tell its new policy; ``objective`` is of latency, in seconds."""
        with self._lock:
            state = self._vfms.get(vfm)
            if state is None:
                self._numbers += 1
                state = self._vfms[vfm] = _Vfm(self._numbers)
            state.weight, state.objective = weight, objective
            state.touched = True

    def remove(self, vfm: str) -> None:
        """Forget ``vfm``, with all that was counted of it."""
        with self._lock:
            self._vfms.pop(vfm, None)

    def vfms(self) -> list[str]:
        """Those that are known."""
        with self._lock:
            return list(self._vfms)

    # ---- requests ----

    def unroutable(self) -> None:
        """A request was refused before it was known for which vFM it is."""
        with self._lock:
            self._fm.unroutable += 1

    def refused(self, vfms: Iterable[str], rows: int, outcome: Outcome, reason: str | None = None) -> None:
        """A request of ``rows`` rows for each of ``vfms`` was not queued; ``reason`` is one of `REJECTIONS`."""
        with self._lock:
            for vfm in vfms:
                if (state := self._vfms.get(vfm)) is not None:
                    state.requests[outcome] += 1
                    state.rows[outcome] += rows
                    if reason is not None:
                        state.rejected[reason] += 1
                    state.touched = True

    def answered(self, vfms: Iterable[str], outcome: Outcome, seconds: float) -> None:
        """A request that was queued for ``vfms`` is answered, ``seconds`` after it came."""
        with self._lock:
            for vfm in vfms:
                if (state := self._vfms.get(vfm)) is None:
                    continue
                state.requests[outcome] += 1
                served = outcome == "served"
                if served:
                    state.latency.observe(seconds)
                if state.objective is not None and outcome != "rejected":
                    met = served and seconds <= state.objective
                    state.slo_met += met
                    state.slo_missed += not met
                state.touched = True

    # ---- rows and batches ----

    def submitted(self, seconds: float) -> None:
        """It took ``seconds`` to queue a request."""
        with self._lock:
            self._fm.submits += 1
            self._fm.submitting += seconds

    def expired(self, vfm: str, reason: str) -> None:
        """A row was not run; ``reason`` is one of `EXPIRIES`."""
        with self._lock:
            if (state := self._vfms.get(vfm)) is not None:
                state.expired[reason] += 1
                state.rows["expired"] += 1
                state.touched = True

    def ended(self, vfm: str, outcome: Outcome) -> None:
        """A row ended otherwise than in a batch that ran."""
        with self._lock:
            if (state := self._vfms.get(vfm)) is not None:
                state.rows[outcome] += 1
                state.touched = True

    def decided(self, batch: Batch, seconds: float) -> None:
        """It took ``seconds`` to decide on ``batch``, which runs from here on."""
        with self._lock:
            fm = self._fm
            fm.decisions += 1
            fm.deciding += seconds
            fm.slowest = max(fm.slowest, seconds)
            self._count_running(batch, 1)

    def lost(self, batch: Batch) -> None:
        """``batch`` did not run to its end."""
        with self._lock:
            self._fm.lost += 1
            self._count_running(batch, -1)

    def _count_running(self, batch: Batch, sign: int) -> None:
        for vfm, share in batch.shares.items():
            if (state := self._vfms.get(vfm)) is not None:
                state.running = max(0, state.running + sign * share.rows)
                state.touched = True

    def completed(
        self,
        batch: Batch,
        charges: Mapping[str, float],
        measured: float,
        started: float,
        now: float,
        failed: Set[Row] = frozenset(),
    ) -> None:
        """``batch`` ran from ``started`` to ``now`` and took ``measured`` seconds of device time; ``failed`` of its
        rows have no answer."""
        took = now - started
        with self._lock:
            self._count_batch(batch, measured, took)
            self._count_running(batch, -1)
            vfms = self._vfms
            for vfm, share in batch.shares.items():
                if (state := vfms.get(vfm)) is not None:
                    state.device += charges.get(vfm, 0.0)
                    state.rows["served"] += share.rows
                    state.queued += share.rows * started
                    state.ran += share.rows * took
            for row in batch.rows:
                if (state := vfms.get(row.vfm)) is not None:
                    state.queued -= row.submitted
            for row in failed:
                if (state := vfms.get(row.vfm)) is not None:
                    state.rows["served"] -= 1
                    state.rows["failed"] += 1
                    state.queued -= started - row.submitted
                    state.ran -= took

    def _count_batch(self, batch: Batch, measured: float, took: float) -> None:
        fm = self._fm
        fm.rows.observe(len(batch.rows))
        fm.mixed.observe(len(batch.shares))
        fm.measured += measured
        fm.predicted += batch.predicted
        fm.busy += took
        sizes = [row.size for row in batch.rows]
        fm.useful += sum(sizes)
        fm.padding += max(sizes) * len(sizes) - sum(sizes)
        error = abs(batch.predicted - measured) / max(measured, 1e-9)
        fm.error += (error - fm.error) * (ERROR_GAIN if fm.rows.count > 1 else 1.0)

    # ---- reading ----

    def snapshot(self, now: float, waiting: Mapping[str, int]) -> Snapshot:
        """Everything at ``now``; ``waiting`` are the rows in each vFM's queue."""
        with self._lock:
            vfms = dict(self._vfms)
            charged = self._charged(now)
            self._fm.turn(now)
        told: dict[tuple[str, int], list[float]] = {}
        total = sum(charged.values())
        active = {name for name, v in vfms.items() if charged.get(v.number) or waiting.get(name) or v.running}
        weights = sum(vfms[name].weight for name in active)
        names = list(vfms)
        for start in range(0, len(names), SLICE):
            with self._lock:
                for name in names[start : start + SLICE]:
                    v = vfms[name]
                    share = round(charged.get(v.number, 0.0) / total, 4) if total else 0.0
                    entitled = round(v.weight / weights, 4) if name in active else 0.0
                    told[name, v.number] = self._tell(v, waiting.get(name, 0), share, entitled)
        with self._lock:
            self._fm.vfms = len(vfms)
            self._fm.told_at = time.time()
            return Snapshot([series.read(self._fm) for series in FM_SERIES], told)

    def _charged(self, now: float) -> dict[int, float]:
        """What each vFM was charged in the window; moves the window on."""
        charged = {v.number: v.device for v in self._vfms.values()}
        marks = self._marks
        while len(marks) > 1 and marks[1][0] <= now - WINDOW:
            marks.popleft()
        before = marks[0][1] if marks else {}
        if not marks or marks[-1][0] <= now - WINDOW / 4:
            marks.append((now, charged))
        return {number: total - before.get(number, 0.0) for number, total in charged.items()}

    @staticmethod
    def _tell(v: _Vfm, waiting: int, share: float, entitled: float) -> list[float]:
        """Under the lock: the values of one vFM; the same list as before where nothing has changed."""
        now = (waiting, share, entitled)
        if v.touched or now != (v.waiting, v.share, v.entitled):
            v.waiting, v.share, v.entitled = now
            v.touched = False
            v.told = [series.read(v) for series in VFM_SERIES]
        return v.told
