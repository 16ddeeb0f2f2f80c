"""Ten times what the server can take, for minutes: is its memory bounded, is its work lost, do light vFMs notice?

All phases are on one server. Half of its vFMs are light: each asks for a part of its share, a row at a time. The others
flood: they ask in requests of several rows. Lengths, texts and the load processes are the same in every phase.

1. Flooders alone, in a closed loop: about what the server can do, from which all rates are made.
2. Light vFMs alone: their latency without a flood.
3. Capacity: light vFMs at their rate, and flooders in a closed loop that always leaves rows waiting, none refused.
4. Overload: light vFMs at their rate; flooders ask for ten times the capacity, open loop. Most of it is refused.
5. Capacity again, since a machine may change meanwhile.

Goodput is what is answered in phase 4, of what is answered in phases 3 and 5 (their mean). Batches beside vFMs that
come and go are shorter by design than those of phase 1, so that one is told, but not compared with.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.progress import Progress

from fmplex_tools.bench.engine.fleet import FleetBase, make_fleet
from fmplex_tools.bench.engine.fleet_server import machine, workplace
from fmplex_tools.bench.fair.arena import serve
from fmplex_tools.bench.fair.bench import Bench, Figure, Outcome, Phase
from fmplex_tools.bench.fair.isolation import full_batch
from fmplex_tools.bench.fair.streams import EXPIRED, FAILED, OK, REFUSED, Stream, latencies
from fmplex_tools.bench.faults.samples import CLIENT, SERVER, Sample, Sampler, as_data
from fmplex_tools.bench.stolen import Stolen

TOKENS = (8, 16, 24, 32)
LIGHT_LOAD = 0.3
"""Of its share, what a light vFM asks for."""
TIMES = 10.0
"""The capacity, that flooders ask for."""
WAITING = 64
"""Rows of each flooder under way in a closed loop."""
QUEUE = 128
"""Rows that may wait of each vFM: a flooder's newest rows are answered after some 10 s and not after a minute."""
GOODPUT_GOAL, MEMORY_GOAL = 0.95, 1.05
WARM = 0.1
"""Part of the overload that does not count in its memory."""


@dataclass(frozen=True, kw_only=True)
class OverloadPlan(FleetBase):
    """What is to be tried."""

    seconds: float = 600.0
    """Of overload; each of the other phases takes a tenth, but no less than ``least``."""
    least: float = 10.0
    vfms: int = 16
    """Half of them light."""
    rows: int = 16
    """In a flooder's request."""
    threads: int = 0


@dataclass(frozen=True)
class Measured:
    """A phase, and what the server's processes held and used in its window."""

    phase: Phase
    samples: list[Sample]
    stolen: float
    """Part of the machine that its hypervisor gave to others."""

    @property
    def spent(self) -> dict[str, float]:
        """Role → processors busy with it, between the first sample and the last."""
        first, last = self.samples[0], self.samples[-1]
        seconds = {role: last.held[role].seconds - first.held[role].seconds for role in (*SERVER, CLIENT)}
        return {role: used / max(1e-9, last.at - first.at) for role, used in seconds.items()}

    @property
    def left(self) -> float:
        """Processors that the generator left to the server, busy or not."""
        return len(os.sched_getaffinity(0)) - self.spent[CLIENT]

    def per_second(self, vfms: Sequence[str], outcome: int) -> float:
        """Requests that ended so between the first sample and the last, a second."""
        ended, (first, last) = self.phase.traffic.of(vfms, outcome)["ended"], (self.samples[0].at, self.samples[-1].at)
        return float(np.sum((ended >= first) & (ended <= last))) / max(1e-9, last - first)


@dataclass
class Overload:
    """One run under way."""

    plan: OverloadPlan
    bench: Bench
    names: list[str]

    @property
    def light(self) -> list[str]:
        """The vFMs that ask for less than their share."""
        return self.names[: len(self.names) // 2]

    @property
    def flooders(self) -> list[str]:
        """The others."""
        return self.names[len(self.names) // 2 :]

    def measure(self, title: str, *groups: Sequence[Stream], seconds: float = 0.0) -> Measured:
        """One phase."""
        seconds = seconds or max(self.plan.least, self.plan.seconds / 10)
        sampler = Sampler(self.bench.arena, every=max(seconds / 60, min(0.5, seconds / 5)))
        stolen = Stolen()
        phase = self.bench.phase(title, *groups, seconds=seconds, on_tick=sampler)
        return Measured(phase, sampler.samples, stolen.part())

    def run(self) -> Outcome:
        """All phases."""
        rows, count = self.plan.rows, len(self.flooders)
        closed = [Stream(name, TOKENS, rows, in_flight=max(1, WAITING // rows)) for name in self.flooders]
        rough = self.measure("flooders alone", closed)
        share = rough.phase.rate(*self.flooders) / len(self.names)
        light = [Stream(name, TOKENS, rate=LIGHT_LOAD * share, poisson=True) for name in self.light]
        alone = self.measure("light vFMs alone", light)
        before = self.measure("capacity", light, closed)
        each = TIMES * before.phase.rate(*self.names) / count / rows
        flood = [Stream(name, TOKENS, rows, rate=each, poisson=True) for name in self.flooders]
        flooded = self.measure("overload", light, flood, seconds=self.plan.seconds)
        after = self.measure("capacity again", light, closed)
        return self.outcome(rough, alone, (before, after), flooded)

    def outcome(self, rough: Measured, alone: Measured, saturated: Sequence[Measured], flooded: Measured) -> Outcome:
        """Figures and their goals."""
        rates = [one.phase.rate(*self.names) for one in saturated]
        titles = ("flooders alone, before", "with light vFMs, before", "… after")
        figures = [
            Figure("capacity", title, one.phase.rate(*self.names), f"rows/s ({told(one)})")
            for title, one in zip(titles, (rough, *saturated), strict=True)
        ]
        figures += self._goodput(rates, saturated, flooded)
        figures += self._light(alone, flooded)
        figures += bounded(flooded.samples)
        figures += [
            Figure("a refused request takes", role, micros, "µs of a processor")
            for role, micros in cost_of_refusals(saturated, flooded, self.names).items()
        ]
        details = {
            "rows_per_s": {"saturated": rates, "overload": flooded.phase.rate(*self.names)},
            "refused": len(flooded.phase.traffic.of(self.flooders, REFUSED)),
            "failures": list(flooded.phase.traffic.failures),
            "processors": {"saturated": [one.spent for one in saturated], "overload": flooded.spent},
            "samples": as_data(flooded.samples),
        }
        return Outcome(figures, details)

    def _goodput(self, rates: Sequence[float], saturated: Sequence[Measured], flooded: Measured) -> list[Figure]:
        capacity = float(np.mean(rates))
        part, traffic = f"overload for {flooded.phase.seconds:.0f} s", flooded.phase.traffic
        asked = traffic.of(self.flooders, None)
        offered = asked["rows"].sum() / (asked["due"].max() - asked["due"].min())
        rate = flooded.phase.rate(*self.names)
        other = sum(len(traffic.of(self.flooders, outcome)) for outcome in (FAILED, EXPIRED))
        refused = len(traffic.of(self.flooders, REFUSED))
        good = rate / capacity
        a_processor = float(np.mean([one / each.left for one, each in zip(rates, saturated, strict=True)]))
        goal = f"≥ {GOODPUT_GOAL}"
        return [
            Figure(part, "flooders ask for", offered / capacity, "× capacity"),
            Figure(part, "goodput", rate, f"rows/s ({told(flooded)})"),
            Figure(part, "goodput, of the capacity", good, "", goal, good >= GOODPUT_GOAL),
            Figure(part, "likewise, by what the generator left of the processors", rate / flooded.left / a_processor),
            Figure(part, "requests refused, with a time to wait", refused),
            Figure(part, "requests of flooders that ended otherwise", other, "", "0", other == 0),
        ]

    def _light(self, alone: Measured, flooded: Measured) -> list[Figure]:
        part = f"{len(self.light)} light vFMs"
        phases = (alone.phase, flooded.phase)
        p99, p99_flooded = (
            float(np.percentile(latencies(one.traffic.of(self.light, since=one.start)), 99)) for one in phases
        )
        batch = full_batch(flooded.phase, self.flooders[0])
        failed = sum(len(one.traffic.of(self.light, bad)) for one in phases for bad in (REFUSED, EXPIRED, FAILED))
        asked = sum(len(one.traffic.of(self.light, None)) for one in phases)
        goal = p99 + 2 * batch
        return [
            Figure(part, f"of {asked:,} requests, failed", failed, "", "0", failed == 0),
            Figure(part, "p99 alone", 1e3 * p99, "ms"),
            Figure(part, "a full batch, p99", 1e3 * batch, "ms"),
            Figure(
                part, "p99 in the flood", 1e3 * p99_flooded, "ms", f"≤ {1e3 * goal:.0f} ms", bool(p99_flooded <= goal)
            ),
        ]


def cost_of_refusals(saturated: Sequence[Measured], flooded: Measured, vfms: Sequence[str]) -> dict[str, float]:
    """Role → µs a refused request: what it used in the overload beyond what so many answers took it at capacity.

    Of the generator too; not of the engines, which see none of them. Empty where there is nothing to tell it from.
    """
    refused = flooded.per_second(vfms, REFUSED)
    answered = np.mean([one.per_second(vfms, OK) for one in saturated])
    if not (refused and answered):
        return {}
    costs = {}
    for role in ("tritonserver", "host", CLIENT):
        each = np.mean([one.spent[role] for one in saturated]) / answered
        costs[role] = float(1e6 * (flooded.spent[role] - each * flooded.per_second(vfms, OK)) / refused)
    return costs


def told(measured: Measured) -> str:
    """Processors busy with each role, and what the hypervisor took."""
    busy = ", ".join(f"{role} {used:.2f}" for role, used in measured.spent.items() if used >= 0.005)
    return f"processors: {busy}; stolen {100 * measured.stolen:.0f} %"


def bounded(samples: Sequence[Sample]) -> list[Figure]:
    """The largest memory of each role in the second half, of that in the first; without the warm-up."""
    counted = samples[int(WARM * len(samples)) :]
    half = max(1, len(counted) // 2)
    figures = []
    for role in ("tritonserver", "host", "engines"):
        first, second = (
            max(sample.held[role].memory for sample in part) for part in (counted[:half], counted[half:] or counted)
        )
        ratio = second / first
        title = f"{role}: largest, 2nd half of 1st"
        goal = f"≤ {MEMORY_GOAL:g}"
        figures.append(Figure("memory", title, ratio, f"({second:.0f} MB)", goal, ratio <= MEMORY_GOAL))
    return figures


def overload(plan: OverloadPlan, progress: Progress, noted: dict[str, Any]) -> Outcome:
    """Try it on a server of its own; what the machine is goes into ``noted``."""
    with workplace() as place:
        line = progress.add_task("starting the server", total=None)
        settings = {"threads": str(plan.threads)}
        fleet = place / "fleet"
        names = make_fleet(fleet, plan.source, plan.fm, plan.vfms, rank=plan.rank, seed=plan.seed, settings=settings)
        with serve(fleet, plan.fm, names) as made:
            noted["machine"] = machine(made)
            made.set_policies(**{name: {"max_queue_size": float(QUEUE)} for name in names})
            progress.remove_task(line)
            bench = Bench(plan.source, made, "fair", plan.threads, plan.seconds, progress, plan.seed)
            return Overload(plan, bench, names).run()
