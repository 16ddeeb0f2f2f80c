"""The last minutes of a few figures, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

SPAN = 300.0
"""Seconds that are kept and shown."""
Point = list[float | None]
"""Seconds before now, as a negative number, and a value; None where it is not known."""
Series = dict[str, list[Point]]
"""Field → points, oldest first; all fields have the same times."""


class Ring:
    """The latest points of some series that share their times: at most ``capacity``, of the last `SPAN` seconds."""

    def __init__(self, fields: Sequence[str], capacity: int) -> None:
        """``capacity``: points, at least 2."""
        self._fields = tuple(fields)
        self._times = np.zeros(capacity)
        self._values = np.full((capacity, len(self._fields)), np.nan, np.float32)
        self._next, self._count = 0, 0

    @property
    def latest(self) -> float:
        """Time of the last point; minus infinity where there is none."""
        return float(self._times[self._next - 1]) if self._count else -math.inf

    def append(self, at: float, values: Mapping[str, float | None]) -> None:
        """A point at ``at``, in seconds; what ``values`` lacks or has as None is a gap. One not later is left out."""
        if at <= self.latest:
            return
        self._times[self._next] = at
        found = (values.get(field) for field in self._fields)
        self._values[self._next] = [math.nan if value is None else value for value in found]
        self._next = (self._next + 1) % len(self._times)
        self._count = min(self._count + 1, len(self._times))

    def gap(self, at: float) -> None:
        """From here on nothing is known; a gap that goes on takes no more points."""
        if self._count and not np.isnan(self._values[self._next - 1]).all():
            self.append(at, {})

    def series(self, now: float) -> Series:
        """The points within `SPAN` before ``now``."""
        order = [(self._next - self._count + i) % len(self._times) for i in range(self._count)]
        times, values = self._times[order] - now, self._values[order]
        keep = times >= -SPAN
        ago = [round(float(time), 1) for time in times[keep]]
        return {
            field: [[at, _told(value)] for at, value in zip(ago, values[keep, column], strict=True)]
            for column, field in enumerate(self._fields)
        }


def _told(value: float) -> float | None:
    """Four digits are what a chart can show."""
    return None if math.isnan(value) else float(f"{value:.4g}")


def line_of(series: Series, field: str, scale: float = 1.0) -> list[Point]:
    """One field, times ``scale``, as a line is drawn.

    A gap is where nothing at all is known. Where other fields are, such as a queue while nothing was served that could
    have had a latency, the line goes on to its next point.
    """
    known = [any(value is not None for _, value in points) for points in zip(*series.values(), strict=True)]
    return [
        [at, None if value is None else round(value * scale, 3)]
        for (at, value), anything in zip(series.get(field, []), known, strict=True)
        if value is not None or not anything
    ]
