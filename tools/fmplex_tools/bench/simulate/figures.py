"""Figures of one run: what a table, a file or a plot shows."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from fmplex_backend.scheduling.interface import VfmPolicy
from fmplex_tools.bench.simulate.run import Counts, Outcome

BACKLOGGED = 0.95
"""A vFM that has rows waiting for this part of the window counts for Jain's index."""


@dataclass(frozen=True)
class Latency:
    """Milliseconds from submission to answer."""

    mean: float
    p50: float
    p99: float


@dataclass(frozen=True)
class Figures:
    """One policy under one load. None where there is nothing to say."""

    cost: str
    load: str
    lengths: str
    vfms: int
    """Without the flooder."""
    policy: str
    rows_per_s: float
    useful: float
    """Part of the device time that went into the rows' own tokens: neither launches, nor padding, nor adapters."""
    busy: float
    """Part of the time that a device was busy."""
    light: Latency | None
    flood: Latency | None
    jain: float | None
    """Jain's index of device time per weight, of the vFMs that were always backlogged."""
    rows_per_batch: float
    vfms_per_batch: float
    padding: float
    """Part of the device time that padding took."""
    rejected: int
    """Rows of light vFMs, as the next."""
    expired: int
    flood_rejected: int
    decision_us: float
    """Real time of a decision, the mean; on this machine, with whatever else it does."""
    decision_p99_us: float
    latencies: tuple[float, ...] = ()
    """Seconds, ascending, of the light vFMs."""

    def plain(self) -> dict[str, object]:
        """For a file: flat, without the single latencies."""
        flat: dict[str, object] = {}
        for name in (item.name for item in dataclasses.fields(self)):
            value = getattr(self, name)
            if name == "latencies":
                continue
            if name in ("light", "flood"):
                for part in ("mean", "p50", "p99"):
                    flat[f"{name}_{part}_ms"] = None if value is None else getattr(value, part)
            else:
                flat[name] = value
        return flat


def figures(
    outcome: Outcome,
    policies: Mapping[str, VfmPolicy],
    *,
    policy: str,
    cost: str = "",
    load: str = "",
    lengths: str = "",
    closed: bool = False,
    engines: int = 1,
    flooders: Collection[str] = (),
) -> Figures:
    """Of ``outcome``; in a ``closed`` loop latencies mean nothing."""
    busy = outcome.busy or float("inf")
    batches = outcome.batches or float("inf")
    decisions = np.array(outcome.decisions or [0.0]) * 1e6
    return Figures(
        cost=cost,
        load=load,
        lengths=lengths,
        vfms=len(policies) - len(flooders),
        policy=policy,
        rows_per_s=outcome.rows / outcome.seconds,
        useful=outcome.useful / busy,
        busy=outcome.busy / (outcome.seconds * engines),
        light=None if closed else latency(outcome.light),
        flood=None if closed else latency(outcome.flood),
        jain=_jain(outcome, policies),
        rows_per_batch=outcome.rows / batches,
        vfms_per_batch=outcome.distinct / batches,
        padding=max(0.0, outcome.padding / busy),
        rejected=outcome.light.rejected,
        expired=outcome.light.expired,
        flood_rejected=outcome.flood.rejected,
        decision_us=float(decisions.mean()),
        decision_p99_us=float(np.percentile(decisions, 99)),
        latencies=() if closed else tuple(sorted(outcome.light.latencies)),
    )


def latency(counts: Counts) -> Latency | None:
    """Of the rows that were served, None where none was."""
    if not counts.latencies:
        return None
    times = np.array(counts.latencies) * 1e3
    return Latency(float(times.mean()), *(float(value) for value in np.percentile(times, [50, 99])))


def jain(shares: list[float]) -> float:
    """(Σx)² / (n·Σx²): 1 where all have the same, 1/n where one has everything."""
    total, squares = sum(shares), sum(share * share for share in shares)
    return total * total / (len(shares) * squares) if squares else 1.0


def _jain(outcome: Outcome, policies: Mapping[str, VfmPolicy]) -> float | None:
    always = [vfm for vfm, seconds in outcome.backlogged.items() if seconds >= BACKLOGGED * outcome.seconds]
    if len(always) < 2:
        return None
    return jain([outcome.charged.get(vfm, 0.0) / policies[vfm].weight for vfm in always])
