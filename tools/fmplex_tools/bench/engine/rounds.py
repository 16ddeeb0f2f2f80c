"""Measuring side by side on a noisy machine: contenders by turns, round after round, and ratios of the same round."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fmplex_tools.bench.fair.bench import Figure

LEAST_ROUNDS = 3

Contender = Callable[[], float]
"""Does its work once and returns the seconds that it took."""
Tick = Callable[[float], None]
"""Told, between measurements, the part of the time that is over, 0 to 1."""


@dataclass(frozen=True)
class Ratio:
    """How much longer one contender takes than another."""

    median: float
    """Of the ratios of the same round."""
    of_minima: float
    """Of the least seconds of each: noise only adds."""

    @property
    def note(self) -> str:
        """What is told beside the median."""
        return f"× (of minima {self.of_minima:.3g})"


def interleave(
    contenders: Mapping[str, Contender],
    seconds: float,
    *,
    on_tick: Tick = lambda part: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Let every contender run once a round until ``seconds`` have passed, `LEAST_ROUNDS` at least: name → seconds.

    All lists are equally long, entry i is of round i. Each round starts with another contender, so that none always
    follows the same one. One round before all others does not count.
    """
    names = list(contenders)
    times: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        contenders[name]()
    begun, number = clock(), 0
    while number < LEAST_ROUNDS or clock() - begun < seconds:
        first = number % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(contenders[name]())
            on_tick(min(1.0, (clock() - begun) / seconds))
        number += 1
    return times


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """``ours`` over ``theirs``: seconds of the same rounds, neither empty."""
    return Ratio(statistics.median(a / b for a, b in zip(ours, theirs, strict=True)), min(ours) / min(theirs))


def at_most(scenario: str, name: str, found: Ratio, goal: float | None = None) -> Figure:
    """A figure of how much longer something takes, which meets its goal when the median does."""
    told = f"≤ {goal:g}×" if goal is not None else ""
    return Figure(scenario, name, found.median, found.note, told, None if goal is None else found.median <= goal)


def at_least(scenario: str, name: str, found: Ratio, goal: float | None = None) -> Figure:
    """Likewise where more is better, such as how many times faster or which part of a throughput."""
    told = f"≥ {goal:g}×" if goal is not None else ""
    return Figure(scenario, name, found.median, found.note, told, None if goal is None else found.median >= goal)
