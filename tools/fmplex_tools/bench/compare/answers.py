"""What became of all that was sent: plain data, and the figures of it.

Latency counts from when a request was due, whenever it was sent, and a request without an answer counts as long as it
was waited for: a server that stalls, or a generator that comes late, cannot hide it (no coordinated omission).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmplex_backend.errors import InvalidInput

OK, FAILED, LATE = range(3)
"""Outcomes: answered; an error; no answer until the drain was over."""

REQUEST = np.dtype(
    [("due", "f8"), ("sent", "f8"), ("ended", "f8"), ("task", "i4"), ("tokens", "i4"), ("outcome", "i4")]
)
"""A request. Times are those of CLOCK_MONOTONIC; a late one ended when it was given up."""


@dataclass(frozen=True, eq=False)
class Answers:
    """Every request that was sent, in the order of their numbers; nothing is left out."""

    requests: NDArray[Any]
    """Of dtype `REQUEST`, [n]."""
    begun: float
    """When the first could have been due, in CLOCK_MONOTONIC."""
    tasks: int
    """How many there are, also those that sent nothing."""
    kept: Mapping[int, NDArray[np.float32]]
    """Number of a request → the output asked for, f4[labels]."""
    failures: tuple[str, ...]
    """Messages of some that failed, no two the same."""
    cpu_seconds: float
    """Of the process that sent, all its threads, from the start until all answers were noted."""


@dataclass(frozen=True)
class Summary:
    """Figures of a window. Latencies are of what was answered or late, NaN where that is nothing."""

    requests: int
    """Due in the window."""
    failed: int
    """Of these, answered with an error, or late."""
    late: int
    offered_per_s: float
    """Requests due in the window, a second."""
    answered_per_s: float
    """Answers, no errors, that came in the window, a second."""
    mean_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    task_mean_ms: tuple[float, ...]
    """Mean latency of each task."""
    jain: float
    """Jain's index of what share of its demand each task got, over the tasks with any: 1 is even, 1/n one gets all.

    A task's share is its answers that came in the window over its requests due in the window.
    """
    generator_late_ms: float
    """99th percentile of how long after it was due a request was sent."""


def summary(answers: Answers, *, warm: float, until: float) -> Summary:
    """Figures of the requests due in [``warm``, ``until``), seconds since the beginning.

    Raises `InvalidInput` where none was due then.
    """
    if until <= warm:
        raise InvalidInput(f"a window from {warm:g} to {until:g} s; it must end after it begins")
    chosen = due_within(answers, warm, until)
    if not len(chosen):
        raise InvalidInput(f"no request was due from {warm:g} to {until:g} s")
    ended = answers.requests["ended"] - answers.begun
    came = answers.requests[(answers.requests["outcome"] == OK) & (ended >= warm) & (ended < until)]
    ms = latencies_ms(chosen)
    p50, p95, p99 = np.percentile(ms, (50, 95, 99)) if len(ms) else (np.nan,) * 3
    of_task = [latencies_ms(chosen[chosen["task"] == task]) for task in range(answers.tasks)]
    demand, goodput = (np.bincount(part["task"], minlength=answers.tasks) for part in (chosen, came))
    return Summary(
        requests=len(chosen),
        failed=int((chosen["outcome"] != OK).sum()),
        late=int((chosen["outcome"] == LATE).sum()),
        offered_per_s=len(chosen) / (until - warm),
        answered_per_s=len(came) / (until - warm),
        mean_ms=_mean(ms),
        p50_ms=float(p50),
        p95_ms=float(p95),
        p99_ms=float(p99),
        max_ms=float(ms.max()) if len(ms) else np.nan,
        task_mean_ms=tuple(_mean(found) for found in of_task),
        jain=jain_index(goodput[demand > 0] / demand[demand > 0]),
        generator_late_ms=float(np.percentile(chosen["sent"] - chosen["due"], 99) * 1e3),
    )


def cdf(answers: Answers, points: int = 50, *, warm: float = 0.0, until: float = np.inf) -> list[tuple[float, float]]:
    """The distribution of latencies, to draw: ``points`` pairs (ms, part of the requests that took no longer).

    Parts are equally far apart from 0 to 1. Of the requests due in [``warm``, ``until``) that were answered or late;
    empty where there is none.
    """
    ms = latencies_ms(due_within(answers, warm, until))
    if not len(ms):
        return []
    parts = np.linspace(0, 1, points)
    return [(float(at), float(part)) for at, part in zip(np.quantile(ms, parts), parts, strict=True)]


def due_within(answers: Answers, warm: float, until: float) -> NDArray[Any]:
    """The requests due in [``warm``, ``until``), seconds since the beginning: of dtype `REQUEST`."""
    due = answers.requests["due"] - answers.begun
    chosen: NDArray[Any] = answers.requests[(due >= warm) & (due < until)]
    return chosen


def latencies_ms(requests: NDArray[Any]) -> NDArray[np.float64]:
    """Milliseconds from due to ended of those that were answered or late; a fast error is no short latency."""
    waited = requests[requests["outcome"] != FAILED]
    ms: NDArray[np.float64] = (waited["ended"] - waited["due"]) * 1e3
    return ms


def jain_index(shares: NDArray[np.float64]) -> float:
    """(Σx)² / (n·Σx²): 1 where all are equal, 1/n where one has all; 0 where none has anything."""
    largest = float(shares.max(initial=0.0))
    if not largest:
        return 0.0
    parts = shares / largest  # the squares of very small numbers are 0
    return float(parts.sum()) ** 2 / (len(parts) * float((parts**2).sum()))


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else np.nan
