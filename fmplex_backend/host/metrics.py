"""The meter: counts what happens in a physical FM, and tells all of it at once.

Events come from the dispatcher, the intake and the senders; each costs about a microsecond. What is counted is in
`fmplex_backend.host.counts`. A removed vFM takes its series with it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass

from fmplex_backend.host.counts import FM_SERIES, VFM_SERIES, WINDOW, FmCounts, Outcome, Series, VfmCounts
from fmplex_backend.scheduling.interface import Batch, Row

SLICE = 64
"""vFMs that are read under one hold of the lock."""
ERROR_GAIN = 0.05
"""How much of the cost model's error one batch makes up."""


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
        self._vfms: dict[str, VfmCounts] = {}
        self._fm = FmCounts(engines)
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
                state = self._vfms[vfm] = VfmCounts(self._numbers)
            state.weight, state.objective = weight, objective
            state.touched = True

    def set_quarantined(self, vfm: str, quarantined: bool) -> None:
        """Whether rows of ``vfm`` are run."""
        with self._lock:
            if (state := self._vfms.get(vfm)) is not None:
                state.quarantined, state.touched = quarantined, True

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

    def engine_died(self) -> None:
        """An engine ended that should not have."""
        with self._lock:
            self._fm.deaths += 1

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
    def _tell(v: VfmCounts, waiting: int, share: float, entitled: float) -> list[float]:
        """Under the lock: the values of one vFM; the same list as before where nothing has changed."""
        now = (waiting, share, entitled)
        if v.touched or now != (v.waiting, v.share, v.entitled):
            v.waiting, v.share, v.entitled = now
            v.touched = False
            v.told = [series.read(v) for series in VFM_SERIES]
        return v.told
