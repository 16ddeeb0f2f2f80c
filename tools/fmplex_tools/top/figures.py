"""What happened between two scrapes: rates, quantiles and shares, of physical FMs and of vFMs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from fmplex_tools.top.scrape import FmScrape, Values

ACCEPTED = ("served", "expired", "failed")


@dataclass(frozen=True)
class VfmFigures:
    """One vFM. Rates are per second; None is for what did not happen, such as the latency of no request."""

    vfm: str
    weight: float
    share: float
    """Of the device, lately."""
    entitled: float
    rows_per_s: float
    requests_per_s: float
    queue: int
    running: int
    p50_ms: float | None
    p99_ms: float | None
    rejected_per_s: float
    expired_per_s: float
    failed_per_s: float
    device_ms_per_s: float
    quarantined: bool
    """No row of it is run, since one has killed engines."""
    slo_ms: float | None
    slo_met: float | None
    """Part of the requests of the interval; of all so far where there were none."""


@dataclass(frozen=True)
class FmFigures:
    """One physical FM and its vFMs."""

    fm: str
    seconds: float
    """Between the two looks; 0 where there was only one."""
    engines: int
    busy: float
    """Part of the engines' time."""
    rows_per_s: float
    queue: int
    batch_rows: float | None
    """Mean of a batch."""
    batch_vfms: float | None
    padding: float | None
    """Part of the tokens that ran."""
    decision_us: float | None
    cost_error: float
    engine_deaths: int
    """Since the start."""
    lost_batches: int
    """Likewise."""
    vfms: tuple[VfmFigures, ...]


def fm_figures(fm: str, before: FmScrape | None, now: FmScrape) -> FmFigures:
    """Figures of the interval from ``before``, or with None what can be told of one moment."""
    gone = FmScrape()
    seconds = max(0.0, now.at - before.at) if before is not None else 0.0
    own = _Change((before or gone).own, now.own, seconds)
    vfms = tuple(
        _vfm_figures(name, _Change((before or now).vfms.get(name, Values()), values, seconds))
        for name, values in sorted(now.vfms.items())
    )
    useful = own.grown("fmplex_useful_tokens_total")
    padding = own.grown("fmplex_padding_tokens_total")
    engines = int(now.own.get("fmplex_engines"))
    return FmFigures(
        fm=fm,
        seconds=seconds,
        engines=engines,
        busy=min(1.0, own.rate("fmplex_engine_busy_seconds_total") / max(1, engines)),
        rows_per_s=sum(v.rows_per_s for v in vfms),
        queue=sum(v.queue for v in vfms),
        batch_rows=own.mean("fmplex_batch_rows"),
        batch_vfms=own.mean("fmplex_batch_vfms"),
        padding=padding / (useful + padding) if useful + padding else None,
        decision_us=_scaled(own.mean("fmplex_decision_seconds"), 1e6),
        cost_error=now.own.get("fmplex_cost_error_ratio"),
        engine_deaths=int(now.own.get("fmplex_engine_deaths_total")),
        lost_batches=int(now.own.get("fmplex_lost_batches_total")),
        vfms=vfms,
    )


class Follower:
    """Figures of one server from look to look: those of an interval hold until its host tells newer values."""

    def __init__(self) -> None:
        self._last: dict[str, FmScrape] = {}
        self._figures: dict[str, FmFigures] = {}

    def follow(self, found: Mapping[str, FmScrape]) -> list[FmFigures]:
        """By name, of the physical FMs in ``found``; the same object as before where nothing newer was told."""
        for name, now in found.items():
            before = self._last.get(name)
            if before is not None and now.at == before.at and name in self._figures:
                continue
            self._figures[name] = fm_figures(name, before, now)
            self._last[name] = now
        return [self._figures[name] for name in sorted(found)]


def _vfm_figures(name: str, change: _Change) -> VfmFigures:
    now = change.now
    buckets = change.buckets("fmplex_request_seconds")
    slo = now.get("fmplex_slo_seconds")
    return VfmFigures(
        vfm=name,
        weight=now.get("fmplex_weight"),
        share=now.get("fmplex_share_ratio"),
        entitled=now.get("fmplex_entitled_share_ratio"),
        rows_per_s=change.rate("fmplex_rows_total", "served"),
        requests_per_s=change.rate("fmplex_requests_total", "served"),
        queue=int(now.get("fmplex_queue_rows")),
        running=int(now.get("fmplex_running_rows")),
        p50_ms=_scaled(quantile(buckets, 0.5), 1e3),
        p99_ms=_scaled(quantile(buckets, 0.99), 1e3),
        rejected_per_s=change.rate("fmplex_requests_total", "rejected"),
        expired_per_s=change.rate("fmplex_requests_total", "expired"),
        failed_per_s=change.rate("fmplex_requests_total", "failed"),
        device_ms_per_s=change.rate("fmplex_device_seconds_total") * 1e3,
        quarantined=bool(now.get("fmplex_quarantined")),
        slo_ms=slo * 1e3 or None,
        slo_met=_slo_met(change) if slo else None,
    )


def _slo_met(change: _Change) -> float | None:
    name = "fmplex_slo_requests_total"
    for met, missed in (
        (change.grown(name, "met"), change.grown(name, "missed")),
        (change.now.get(name, "met"), change.now.get(name, "missed")),
    ):
        if met + missed:
            return met / (met + missed)
    return None


def quantile(buckets: Mapping[float, float], q: float) -> float | None:
    """The ``q`` quantile of a histogram (upper edge → values within it), linear within a bucket as in Prometheus.

    None of an empty one; beyond the last edge, that edge.
    """
    total = buckets.get(math.inf, 0.0)
    if not total:
        return None
    low, below = 0.0, 0.0
    for edge, within in sorted(buckets.items()):
        if within >= q * total:
            return low if edge == math.inf else low + (edge - low) * (q * total - below) / max(within - below, 1e-9)
        low, below = edge, within
    return low


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


@dataclass(frozen=True)
class _Change:
    """From ``before`` to ``now``, ``seconds`` later."""

    before: Values
    now: Values
    seconds: float

    def grown(self, name: str, label: str = "") -> float:
        """By how much a counter grew; one that is lower than before began anew."""
        before, now = self.before.get(name, label), self.now.get(name, label)
        return now - before if now >= before else now

    def rate(self, name: str, label: str = "") -> float:
        """Per second."""
        return self.grown(name, label) / self.seconds if self.seconds else 0.0

    def mean(self, name: str) -> float | None:
        """Of the values of a sum and a count."""
        count = self.grown(f"{name}_count")
        return self.grown(f"{name}_sum") / count if count else None

    def buckets(self, name: str) -> dict[float, float]:
        """Of the values of the interval."""
        before, now = self.before.buckets(name), self.now.buckets(name)
        began_anew = any(value < before.get(edge, 0.0) for edge, value in now.items())
        return now if began_anew else {edge: value - before.get(edge, 0.0) for edge, value in now.items()}
