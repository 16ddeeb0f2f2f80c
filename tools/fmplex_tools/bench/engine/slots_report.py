"""What `slots` is to measure, and what it found: the curve over the number of vFMs, promises, a plot. Pure."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fmplex_backend.errors import InvalidInput
from fmplex_tools.bench.engine.fleet import FleetPlan
from fmplex_tools.bench.fair.bench import Figure, Outcome

COUNTS = (8, 32, 64, 65, 128, 250, 500, 1000)
LOAD = 0.6
"""Of the capacity at as many vFMs as there are slots."""
P95_GOAL = 2.0
CLIFF_P95_GOAL = 1.3
CLIFF_RATE_GOAL = 0.9


@dataclass(frozen=True, kw_only=True)
class SlotsPlan(FleetPlan):
    """What is to be measured; ``seconds`` are of each phase."""

    counts: tuple[int, ...] = COUNTS
    """How many vFMs are asked; the largest is how many there are."""
    exponent: float = 1.05
    rounds: int = 3
    clients: int = 192
    """At a time, for the saturating load."""
    load: float = LOAD

    def check(self) -> None:
        """Raise `InvalidInput` where the counts leave nothing to compare."""
        if self.slots not in self.counts or max(self.counts) == self.slots:
            counts = ",".join(map(str, self.counts))
            raise InvalidInput(f"counts {counts}: give the number of slots, {self.slots}, and a larger one")

    @property
    def total(self) -> int:
        """vFMs that are loaded."""
        return max(self.counts)


@dataclass(frozen=True)
class Point:
    """One phase of load, without its warm-up."""

    milliseconds: tuple[float, float, float] = (np.nan, np.nan, np.nan)
    """50th, 95th and 99th percentile, from when each request was due."""
    rate: float = 0.0
    """Rows a second that were answered."""
    answered: int = 0
    failed: int = 0
    failures: tuple[str, ...] = ()


@dataclass
class Curve:
    """What was measured at one number of vFMs, an entry a round."""

    open: list[Point] = field(default_factory=list)
    saturated: list[Point] = field(default_factory=list)

    def median_ms(self, percentile: int) -> float:
        """Over the rounds, under the open-loop load; ``percentile`` is 50, 95 or 99."""
        place = (50, 95, 99).index(percentile)
        return statistics.median(point.milliseconds[place] for point in self.open)

    @property
    def rate(self) -> float:
        """Rows a second under saturation, the median over the rounds."""
        return statistics.median(point.rate for point in self.saturated)

    @property
    def failed(self) -> int:
        """Requests that were not answered, of all rounds."""
        return sum(point.failed for point in (*self.open, *self.saturated))


def figures_of(plan: SlotsPlan, curves: dict[int, Curve]) -> list[Figure]:
    """The curve, and what is promised of it."""
    figures = []
    for count, curve in curves.items():
        rest = f"ms, p95 {curve.median_ms(95):.3g}, p99 {curve.median_ms(99):.3g}; {curve.rate:,.0f} rows/s"
        figures.append(Figure("open loop; saturated", f"{count} vFMs: p50", curve.median_ms(50), rest))
    base, most = curves[plan.slots], curves[plan.total]
    promised = "promises"
    ratio = most.median_ms(95) / base.median_ms(95)
    title = f"p95 of {plan.total} vFMs, of that of {plan.slots}"
    figures.append(Figure(promised, title, ratio, "×", f"≤ {P95_GOAL:g}×", ratio <= P95_GOAL))
    title = f"rows/s of {plan.total} vFMs, of those of {plan.slots}"
    figures.append(Figure(promised, title, most.rate / base.rate, "×"))
    if (beyond := curves.get(plan.slots + 1)) is not None:
        title, ratio = f"p95 with one vFM more than {plan.slots}", beyond.median_ms(95) / base.median_ms(95)
        figures.append(Figure(promised, title, ratio, "×", f"≤ {CLIFF_P95_GOAL:g}×", ratio <= CLIFF_P95_GOAL))
        title, ratio = f"rows/s with one vFM more than {plan.slots}", beyond.rate / base.rate
        figures.append(Figure(promised, title, ratio, "×", f"≥ {CLIFF_RATE_GOAL:g}×", ratio >= CLIFF_RATE_GOAL))
    failed = sum(curve.failed for curve in curves.values())
    answered = sum(point.answered for curve in curves.values() for point in (*curve.open, *curve.saturated))
    figures.append(Figure(promised, f"requests failed, of {answered + failed:,}", failed, "", "0", failed == 0))
    return figures


def details_of(plan: SlotsPlan, curves: dict[int, Curve]) -> dict[str, Any]:
    """Plain data of every round, for the JSON file and the plot."""
    points = {
        str(count): {
            kind: [
                {
                    "p50_p95_p99_ms": [round(value, 3) for value in point.milliseconds],
                    "rows_per_s": round(point.rate, 1),
                    "answered": point.answered,
                    "failed": point.failed,
                    "failures": list(point.failures),
                }
                for point in rounds
            ]
            for kind, rounds in (("open", curve.open), ("saturated", curve.saturated))
        }
        for count, curve in curves.items()
    }
    return {"slots": plan.slots, "curve": points}


def draw(outcome: Outcome, folder: Path) -> Path:
    """Latency and throughput over the number of vFMs that are asked; the median of the rounds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    curve = outcome.details["curve"]
    counts = [int(count) for count in curve]
    figure, (latency, rate) = pyplot.subplots(1, 2, figsize=(8.0, 3.0), dpi=80, layout="constrained")
    for place, title in enumerate(("p50", "p95")):
        of_rounds = [[point["p50_p95_p99_ms"][place] for point in found["open"]] for found in curve.values()]
        latency.plot(counts, [statistics.median(values) for values in of_rounds], marker=".", label=title)
    of_rounds = [[point["rows_per_s"] for point in found["saturated"]] for found in curve.values()]
    rate.plot(counts, [statistics.median(values) for values in of_rounds], marker=".", label="saturated")
    for axes, title in ((latency, "ms, the same load for all"), (rate, "rows/s")):
        axes.axvline(outcome.details["slots"], color="tab:gray", linestyle="dotted", label="adapter slots")
        axes.set(xscale="log", xlabel="vFMs that are asked", ylabel=title, ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    file = folder / "engine_slots.png"
    figure.savefig(file)
    pyplot.close(figure)
    return file
