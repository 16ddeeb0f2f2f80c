"""The load of a comparison: which task sends a row of which length when, from a seed alone.

All deployments are given the same `Schedule`, and `digest` tells that they were. Every task has random streams of its
own (arrivals, lengths), so a task sends the same whichever tasks are beside it at the same rate, and a longer schedule
begins with the shorter one.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, fields
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fmplex_backend.errors import InvalidInput
from fmplex_tools.bench.engine.zipf import popularity as zipf_shares

Popularity = Literal["equal", "zipf"]
Arrivals = Literal["poisson", "bursty"]
Lengths = Literal["short", "long", "mixed"]

BURST_FACTOR = 4.0
"""A bursty task sends this many times its mean rate while it is on, and nothing while it is off."""
ON_SECONDS = 0.5
"""Mean time on; times on and off are exponential (an interrupted Poisson process)."""
OFF_SECONDS = ON_SECONDS * (BURST_FACTOR - 1)
"""Mean time off, such that the mean rate is that of the task."""

SHORT = (8, 16)
"""Tokens of a short row, [CLS] and [SEP] included: uniform, both ends possible."""
LONG = (96, 128)
MIXED = (8, 128)
"""A mixed length is log-normal, rounded, and cut to these: mean 32, 1 in 10 at the lower end, 1 in 54 at the upper."""
MIXED_MEDIAN, MIXED_SIGMA = 24.0, 0.8

_ARRIVALS, _PHASES, _LENGTHS, _FLOOD, _FLOOD_LENGTHS = range(5)
_CHUNK = 256
"""Random numbers are drawn so many at a time."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """An open loop of single rows."""

    tasks: int
    rate: float
    """Requests a second of all tasks together, without the flood."""
    seconds: float
    seed: int = 0
    popularity: Popularity = "equal"
    """How the rate is split: equally, or task k (from 0) has 1/(k+1)^``exponent`` of what task 0 has."""
    exponent: float = 1.0
    arrivals: Arrivals = "poisson"
    lengths: Lengths = "mixed"
    flood: float = 0.0
    """Requests a second that task 0 sends besides (Poisson), in lengths drawn like all others."""

    def check(self) -> None:
        """Raise `InvalidInput` that names the value and what would be right."""
        choices = {"popularity": Popularity, "arrivals": Arrivals, "lengths": Lengths}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in choices:
                right = get_args(choices[field.name])
                if value not in right:
                    raise InvalidInput(f"workload: {field.name} {value!r}; one of {', '.join(right)}")
            elif not math.isfinite(value):
                raise InvalidInput(f"workload: {field.name} {value!r}; a finite number")
        for name, value in (("rate", self.rate), ("seconds", self.seconds)):
            if value <= 0:
                raise InvalidInput(f"workload: {name} {value!r}; more than 0")
        for name, value in (("seed", self.seed), ("exponent", self.exponent), ("flood", self.flood)):
            if value < 0:
                raise InvalidInput(f"workload: {name} {value!r}; at least 0")
        if self.tasks < 1:
            raise InvalidInput(f"workload: tasks {self.tasks!r}; at least 1")

    def rates(self) -> NDArray[np.float64]:
        """Mean requests a second of each task, without the flood: f8[tasks]."""
        return self.rate * zipf_shares(self.tasks, self.exponent if self.popularity == "zipf" else 0.0)


@dataclass(frozen=True, eq=False)
class Schedule:
    """n requests of one row each, in the order they are due; arrays that nobody changes."""

    due: NDArray[np.float64]
    """Seconds from the start, ascending: f8[n]."""
    task: NDArray[np.int32]
    """From 0: i4[n]."""
    tokens: NDArray[np.int32]
    """Special tokens included: i4[n]."""

    def __len__(self) -> int:
        return len(self.due)


def schedule(workload: Workload) -> Schedule:
    """The requests of ``workload``: the same for the same values, and all of them due before ``seconds``.

    With more seconds, all else the same, it begins with the same requests. Raises `InvalidInput`.
    """
    workload.check()
    parts = []
    for task, rate in enumerate(workload.rates()):
        due = _arrivals(workload, task, float(rate))
        parts.append((task, due, _lengths(workload, _chance(workload, task, _LENGTHS), len(due))))
    if workload.flood:
        due = _poisson(_chance(workload, 0, _FLOOD), workload.flood, workload.seconds)
        parts.append((0, due, _lengths(workload, _chance(workload, 0, _FLOOD_LENGTHS), len(due))))
    due = np.concatenate([due for _, due, _ in parts])
    order = np.argsort(due, kind="stable")
    task_of = np.concatenate([np.full(len(due), task, np.int32) for task, due, _ in parts])
    tokens = np.concatenate([tokens for _, _, tokens in parts])
    return Schedule(due[order], task_of[order], tokens[order])


def digest(made: Schedule) -> str:
    """12 hex digits of what is sent when; equal for equal schedules."""
    summed = hashlib.sha256()
    for array in (made.due, made.task, made.tokens):
        summed.update(np.ascontiguousarray(array).tobytes())
    return summed.hexdigest()[:12]


def _chance(workload: Workload, task: int, purpose: int) -> np.random.Generator:
    return np.random.default_rng([workload.seed, task, purpose])


def _arrivals(workload: Workload, task: int, rate: float) -> NDArray[np.float64]:
    chance = _chance(workload, task, _ARRIVALS)
    if workload.arrivals == "poisson":
        return _poisson(chance, rate, workload.seconds)
    return _interrupted(chance, _chance(workload, task, _PHASES), rate, workload.seconds)


def _poisson(chance: np.random.Generator, rate: float, seconds: float) -> NDArray[np.float64]:
    """Times from 0 until ``seconds``; the first ones do not depend on ``seconds``."""
    times = np.empty(0)
    end = 0.0
    while end < seconds:
        more = end + np.cumsum(chance.exponential(1 / rate, _CHUNK))
        times, end = np.append(times, more), float(more[-1])
    return times[: int(np.searchsorted(times, seconds))]


def _interrupted(
    chance: np.random.Generator, phases: np.random.Generator, rate: float, seconds: float
) -> NDArray[np.float64]:
    """Poisson arrivals on a clock that runs only while the task is on, put back on the wall's clock."""
    # Exponential times have no memory, so a task that begins on with the chance it has in the long run is as later on.
    begins_on = phases.random() < 1 / BURST_FACTOR
    starts, lengths, now = [], [], 0.0 if begins_on else float(phases.exponential(OFF_SECONDS))
    while now < seconds:
        starts.append(now)
        lengths.append(float(phases.exponential(ON_SECONDS)))
        now += lengths[-1] + float(phases.exponential(OFF_SECONDS))
    if not starts:
        return np.empty(0)
    begun = np.concatenate([[0.0], np.cumsum(lengths)])  # the on-clock at each start, and at the end of all
    times = _poisson(chance, BURST_FACTOR * rate, float(begun[-1]))
    phase = np.searchsorted(begun, times, side="right") - 1
    wall: NDArray[np.float64] = np.array(starts)[phase] + (times - begun[phase])
    return wall[wall < seconds]


def _lengths(workload: Workload, chance: np.random.Generator, count: int) -> NDArray[np.int32]:
    drawn: NDArray[np.float64]
    if workload.lengths == "mixed":
        drawn = np.rint(MIXED_MEDIAN * np.exp(MIXED_SIGMA * chance.standard_normal(count)))
        return np.clip(drawn, *MIXED).astype(np.int32)
    low, high = SHORT if workload.lengths == "short" else LONG
    # random() and not integers(), which may draw several times for one number and so lose the place
    drawn = low + np.floor(chance.random(count) * (high + 1 - low))
    return drawn.astype(np.int32)
