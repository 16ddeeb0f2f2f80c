"""Brings the meter's values to a server's metrics, about once a second, as far as they have changed.

With Triton every change of a series is a round trip to tritonserver (about 30 µs), and a series ends only when its
family's object is dropped. From this follow the rules:

1. A series begins to exist when it, or another of its block, is not zero. Only changes are sent.
2. Each vFM has family objects of its own, so that its series can end with it.
3. Sending takes at most `DUTY` of the time; the interval stretches where there is more to send.
4. Nothing is ever sent that Triton refuses, e.g. a counter that falls.
5. A defect here ends the metrics, not the serving.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

from fmplex_backend.host.counts import FM_SERIES, VFM_SERIES, Series
from fmplex_backend.host.metrics import Snapshot

INTERVAL = 1.0
DUTY = 0.1
BURST = 1e-3
"""Seconds of sending between two pauses."""


class Metric(Protocol):
    """One series, as Triton has it."""

    def increment(self, value: float) -> None:
        """Of a counter, by a positive number."""

    def set(self, value: float) -> None:
        """Of a gauge."""


class Family(Protocol):
    """Makes the series of one name; they end when it is dropped."""

    def Metric(self, *, labels: dict[str, str]) -> Metric:  # noqa: N802  (Triton's name)
        """A series with these labels."""


class _Group:
    """The series of one vFM, or of the physical FM, and what was sent of them."""

    def __init__(self, layout: tuple[Series, ...], labels: dict[str, str]) -> None:
        self._layout, self._labels = layout, labels
        self._families: dict[str, Family] = {}
        self._metrics: list[Metric | None] = [None] * len(layout)
        self._blocks: set[int] = set()
        self._sent = [0.0] * len(layout)
        self._seen: list[float] | None = None

    def send(self, values: list[float], open_family: Callable[[Series], Family], pause: Callable[[], bool]) -> bool:
        """Send what has changed; False where ``pause``, asked after each, said to stop."""
        if values is self._seen:
            return True
        self._blocks.update(s.block for s, value in zip(self._layout, values, strict=True) if value)
        for index, (series, value) in enumerate(zip(self._layout, values, strict=True)):
            if series.block not in self._blocks:
                continue
            metric = self._metrics[index]
            if metric is None:
                metric = self._metrics[index] = self._make(series, open_family)
            elif value == self._sent[index]:
                continue
            if series.kind == "gauge":
                metric.set(value)
            elif value > self._sent[index]:
                metric.increment(value - self._sent[index])
            self._sent[index] = value
            if not pause():
                return False
        self._seen = values
        return True

    def _make(self, series: Series, open_family: Callable[[Series], Family]) -> Metric:
        family = self._families.get(series.name)
        if family is None:
            family = self._families[series.name] = open_family(series)
        return family.Metric(labels={**self._labels, **series.labels})

    def clear(self) -> None:
        """End its series: first each, then their families."""
        self._metrics.clear()
        self._families.clear()


class Publisher:
    """See the module. ``look`` gives the values, ``open_family`` a new family object for a series' name."""

    def __init__(
        self,
        fm: str,
        look: Callable[[], Snapshot],
        open_family: Callable[[Series], Family],
        log: Callable[[str], None],
    ) -> None:
        self._fm, self._look, self._open_family, self._log = fm, look, open_family, log
        self._own = _Group(FM_SERIES, {"fm": fm})
        self._groups: dict[tuple[str, int], _Group] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics")
        self._burst_began = 0.0

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Join the thread and end every series."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()
        for group in (self._own, *self._groups.values()):
            group.clear()
        self._groups.clear()

    def publish(self) -> None:
        """Send what has changed since the last time."""
        snapshot = self._look()
        self._burst_began = time.monotonic()
        for key in self._groups.keys() - snapshot.vfms.keys():  # first: a new one may have the same labels
            self._groups.pop(key).clear()
            self._pause()
        for key, values in snapshot.vfms.items():
            group = self._groups.get(key)
            if group is None:
                group = self._groups[key] = _Group(VFM_SERIES, {"fm": self._fm, "vfm": key[0]})
            if not group.send(values, self._open_family, self._pause):
                return
        self._own.send(snapshot.fm, self._open_family, self._pause)  # last: it says of when the values are

    def _pause(self) -> bool:
        """Rest in proportion to what sending took; False where it is time to stop."""
        took = time.monotonic() - self._burst_began
        if took < BURST:
            return not self._stop.is_set()
        stopping = self._stop.wait(took * (1 / DUTY - 1))
        self._burst_began = time.monotonic()
        return not stopping

    def _run(self) -> None:
        try:
            while not self._stop.wait(INTERVAL):
                self.publish()
        except Exception as error:
            self._log(f"defect: no metrics from here on: {type(error).__name__}: {error}")
