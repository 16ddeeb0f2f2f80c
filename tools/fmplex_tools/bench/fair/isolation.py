"""A vFM that asks for ten times what the device can do: what its neighbours notice, and what it gets."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmplex_tools.bench.fair.bench import FLOODER, HEAD, LORA, OTHER, Bench, Figure, Outcome, Phase, plain
from fmplex_tools.bench.fair.meters import BATCH_ROWS, ROWS, read
from fmplex_tools.bench.fair.streams import EXPIRED, FAILED, OK, REFUSED, Stream, latencies

LIGHT = (HEAD, LORA)
LIGHT_LOAD = 0.15
"""Of its fair share, what a light vFM asks for."""
FLOOD = 10.0
"""Times the capacity."""
FLOOD_ROWS = 64
LEFT_OVER_GOAL = 0.95
SLO_GOAL = 0.99
EXPIRED_US = 2_000
EXPIRED_RATE = 20.0
FULL = 0.9
"""A batch with at least this part of the rows of most is a full one."""


def flood(bench: Bench) -> Outcome:
    """The light vFMs alone, then beside the flooder."""
    bench.arena.set_policies(**plain(**dict.fromkeys((*LIGHT, FLOODER), 1.0)))
    capacity = _capacity(bench)
    light = _light(capacity)
    alone = bench.phase("light vFMs alone", light)
    flooded = bench.phase("light vFMs beside a flood", light, [_flooder(capacity)])
    capacity_again = _capacity(bench)
    outcome = Outcome()
    before, after = _latencies(alone), _latencies(flooded)
    full = full_batch(flooded, FLOODER)
    p99_alone, p99 = (float(np.percentile(found, 99)) for found in (before, after))
    bench.found |= {"capacity": capacity, "p99_alone": p99_alone, "full_batch": full}

    figures = outcome.figures
    figures.append(Figure("flood", "capacity, before / after", capacity, f"/ {capacity_again:.0f} rows/s"))
    asked = flooded.traffic.of(FLOODER, None)
    offered = asked["rows"].sum() / (asked["due"].max() - asked["due"].min())
    figures.append(Figure("flood", "flooder asks for", offered / capacity, "× capacity"))
    figures.append(Figure("flood", "light p50 alone", 1e3 * float(np.median(before)), "ms"))
    figures.append(Figure("flood", "light p50 in the flood", 1e3 * float(np.median(after)), "ms"))
    figures.append(Figure("flood", "light p99 alone", 1e3 * p99_alone, "ms"))
    figures.append(Figure("flood", "a full batch, p99", 1e3 * full, "ms"))
    goal = p99_alone + 2 * full
    figures.append(Figure("flood", "light p99 in the flood", 1e3 * p99, "ms", f"≤ {1e3 * goal:.0f} ms", p99 <= goal))
    failed = sum(len(phase.traffic.of(LIGHT, bad)) for phase in (alone, flooded) for bad in (REFUSED, EXPIRED, FAILED))
    figures.append(Figure("flood", f"light failed, of {len(before) + len(after)}", failed, "", "0", failed == 0))
    figures += _left_over(flooded, (capacity + capacity_again) / 2)
    outcome.details = {
        "alone_ms": _quantiles(before),
        "flood_ms": _quantiles(after),
        "flooder_ms": _quantiles(latencies(flooded.traffic.of(FLOODER, since=flooded.start))),
        "full_batch_ms": 1e3 * full,
        "failures": list(flooded.traffic.failures),
    }
    return outcome


def _left_over(flooded: Phase, capacity: float) -> list[Figure]:
    got, used = flooded.rate(FLOODER), flooded.rate(*LIGHT)
    of_rows = got / (capacity - used)
    of_time = flooded.charged(FLOODER) / (flooded.seconds - flooded.charged(*LIGHT))
    goal = f"≥ {100 * LEFT_OVER_GOAL:g} %"
    return [
        # No goal: the capacity was measured without a flood, whose refusals take processor time where cores are shared.
        Figure("flood", "flooder: of rows/s left over", 100 * of_rows, "%"),
        Figure("flood", "flooder: of time left over", 100 * of_time, "%", goal, of_time >= LEFT_OVER_GOAL),
    ]


def slo(bench: Bench) -> Outcome:
    """A light vFM with a latency objective beside the flooder; another without one goes on as before."""
    if "capacity" not in bench.found:
        flood(bench)
    found = bench.found
    objective = bench.slo_ms / 1e3 or found["p99_alone"] + 2 * found["full_batch"]
    objective = round(objective, 3)
    policies = plain(**dict.fromkeys((*LIGHT, FLOODER), 1.0))
    policies[LORA]["latency_slo_ms"] = 1e3 * objective
    bench.arena.set_policies(**policies)
    phase = bench.phase("latency objective", _light(found["capacity"]), [_flooder(found["capacity"])])
    asked = phase.traffic.of(LORA, None, phase.start)
    within = asked[(asked["outcome"] == OK) & (latencies(asked) <= objective)]
    met = len(within) / len(asked)
    title = f"within {1e3 * objective:.0f} ms, of {len(asked)}"
    figures = [Figure("slo", title, 100 * met, "%", f"≥ {100 * SLO_GOAL:g} %", met >= SLO_GOAL)]
    figures.append(Figure("slo", "its p99", 1e3 * float(np.percentile(latencies(asked), 99)), "ms"))
    figures.append(Figure("slo", "a full batch beside it, p99", 1e3 * full_batch(phase, FLOODER), "ms"))
    return Outcome(figures, {"objective_ms": 1e3 * objective, "ms": _quantiles(latencies(asked))})


def expired(bench: Bench) -> Outcome:
    """Requests whose time is up before they could run, beside a flood: every row that ran is one that was answered."""
    capacity = bench.found.get("capacity") or _capacity(bench)
    bench.arena.set_policies(**plain(**dict.fromkeys((*LIGHT, FLOODER, OTHER), 1.0)))
    hasty = Stream(OTHER, rate=EXPIRED_RATE, poisson=True, timeout_us=EXPIRED_US)
    before = read(bench.arena)
    phase = bench.phase("expired requests", [*_light(capacity), hasty], [_flooder(capacity)])
    after = read(bench.arena)
    asked = phase.traffic.of(OTHER, None)
    late = asked[asked["outcome"] == EXPIRED]
    ran = round(after.value(BATCH_ROWS) - before.value(BATCH_ROWS))
    counted = round(after.value(ROWS, label="expired") - before.value(ROWS, label="expired"))
    answered = len(phase.traffic.rows)
    in_vain = max(ran - answered, rows_unanswered(phase.traffic.rows))
    title = f"deadline error, of {len(asked)}"
    took = 1e3 * float(np.percentile(latencies(late), 99)) if len(late) else np.nan
    figures = [
        Figure("expired", title, len(late), "", "all", 0 < len(late) == len(asked)),
        Figure("expired", "expired rows as counted", counted, "rows", "same", counted == len(late)),
        Figure("expired", "rows that the engine ran", ran, "rows"),
        Figure("expired", "of them not answered", in_vain, "rows", "0", in_vain == 0),
        Figure("expired", f"p99 until the error, of {EXPIRED_US / 1e3:g} ms", took, "ms"),
    ]
    return Outcome(figures, {"asked": len(asked), "expired": len(late), "ran": ran, "answered": answered})


def rows_unanswered(rows: NDArray[Any]) -> int:
    """Rows that were in the batches of ``rows`` (all that were answered, of all vFMs) and are not among them.

    Rows of one batch tell the same compute time, to the microsecond, and size; two batches that happen to agree in both
    are counted right as well.
    """
    _, inverse, counts = np.unique(rows[["computed", "batch_rows"]], return_inverse=True, return_counts=True)
    sizes = np.zeros(len(counts), int)
    sizes[inverse] = rows["batch_rows"]
    return int(np.sum(-counts % sizes))


def full_batch(phase: Phase, vfm: str) -> float:
    """Seconds that a full batch may take: the 99th percentile, to compare with one of latency."""
    rows = phase.traffic.rows_of(vfm)
    rows = rows[phase.traffic.ended(rows) >= phase.start]
    batches = np.unique(rows[["computed", "batch_rows"]])
    full = batches[batches["batch_rows"] >= FULL * np.median(batches["batch_rows"])]
    return float(np.percentile(full["computed"], 99))


def _capacity(bench: Bench) -> float:
    stream = Stream(FLOODER, rows=16, in_flight=16)
    return bench.phase("capacity", [stream], seconds=max(3.0, bench.seconds / 2)).rate(FLOODER)


def _light(capacity: float) -> list[Stream]:
    rate = LIGHT_LOAD * capacity / (len(LIGHT) + 1)
    return [Stream(vfm, rate=rate, poisson=True) for vfm in LIGHT]


def _flooder(capacity: float) -> Stream:
    return Stream(FLOODER, rows=FLOOD_ROWS, rate=FLOOD * capacity / FLOOD_ROWS)


def _latencies(phase: Phase) -> NDArray[Any]:
    return latencies(phase.traffic.of(LIGHT, since=phase.start))


def _quantiles(seconds: NDArray[Any]) -> list[float]:
    """In ms: the 0th, 1st … 100th percentile."""
    return [round(1e3 * float(q), 2) for q in np.percentile(seconds, range(101))] if len(seconds) else []
