"""What is sent, and what became of it: plain data that the load processes and the scenarios share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

OK, REFUSED, EXPIRED, FAILED = range(4)
"""Outcomes of a request: answered; UNAVAILABLE; its deadline passed; anything else."""

REQUEST = np.dtype(
    [("stream", "i4"), ("due", "f8"), ("sent", "f8"), ("ended", "f8"), ("rows", "i4"), ("outcome", "i4")]
)
"""A request: times are those of CLOCK_MONOTONIC, which all processes of a machine share."""
ROW = np.dtype([("request", "i8"), ("queued", "f8"), ("computed", "f8"), ("batch_rows", "i4")])
"""A row that was answered, as its ``info`` tells: seconds in the queue, seconds of its batch, rows in its batch."""


@dataclass(frozen=True)
class Stream:
    """Requests to one vFM: closed loop (``in_flight`` at a time) or open loop (``rate``), never both."""

    vfm: str
    tokens: tuple[int, ...] = (16,)
    """Lengths of its rows, drawn at random; the longest that every demo vFM takes uncut is 40."""
    rows: int = 1
    """Rows in a request."""
    in_flight: int = 0
    rate: float = 0.0
    """Requests a second, sent when they are due, whatever became of those before."""
    poisson: bool = False
    """Whether the times between them are exponential instead of equal."""
    timeout_us: int = 0
    """Triton's ``timeout`` parameter; 0 sends none."""
    modality: str = "text"
    """Of other rows than texts, see `fmplex_tools.bench.fair.rows`; ``tokens`` is of texts."""


@dataclass(frozen=True)
class Traffic:
    """All that several streams sent, and how it ended."""

    streams: tuple[Stream, ...]
    requests: NDArray[Any]
    """Of dtype `REQUEST`."""
    rows: NDArray[Any]
    """Of dtype `ROW`; ``request`` is an index into ``requests``."""
    failures: tuple[str, ...] = ()
    """Messages of some that failed."""

    def of(self, vfms: str | Sequence[str], outcome: int | None = OK, since: float = 0.0) -> NDArray[Any]:
        """The requests to ``vfms`` with that outcome (None is any) that were due at ``since`` or later."""
        names = [vfms] if isinstance(vfms, str) else vfms
        wanted = np.isin(self.requests["stream"], [i for i, s in enumerate(self.streams) if s.vfm in names])
        wanted &= self.requests["due"] >= since
        if outcome is not None:
            wanted &= self.requests["outcome"] == outcome
        return self.requests[wanted]

    def rows_of(self, vfm: str) -> NDArray[Any]:
        """The answered rows of ``vfm``."""
        streams = [index for index, stream in enumerate(self.streams) if stream.vfm == vfm]
        return self.rows[np.isin(self.requests["stream"][self.rows["request"]], streams)]

    def ended(self, rows: NDArray[Any]) -> NDArray[Any]:
        """When each of ``rows`` was answered."""
        times: NDArray[Any] = self.requests["ended"][rows["request"]]
        return times

    def rate(self, vfms: str | Sequence[str], start: float, end: float) -> float:
        """Rows a second that were answered: from the first answer in the window to the last one."""
        done = self.of(vfms)
        done = done[(done["ended"] >= start) & (done["ended"] <= end)]
        if len(done) < 2:
            return 0.0
        first = done["ended"].min()
        later = done[done["ended"] > first]
        return float(later["rows"].sum() / (done["ended"].max() - first)) if len(later) else 0.0


def latencies(requests: NDArray[Any]) -> NDArray[Any]:
    """Seconds from when each request was due: what a client waits, also for a sender that came late."""
    seconds: NDArray[Any] = requests["ended"] - requests["due"]
    return seconds


def merge(parts: Sequence[Traffic]) -> Traffic:
    """The traffic of several processes as one."""
    requests, rows = [], []
    streams = requests_before = 0
    for part in parts:
        of_part, rows_of_part = part.requests.copy(), part.rows.copy()
        of_part["stream"] += streams
        rows_of_part["request"] += requests_before
        streams += len(part.streams)
        requests_before += len(of_part)
        requests.append(of_part)
        rows.append(rows_of_part)
    return Traffic(
        tuple(stream for part in parts for stream in part.streams),
        np.concatenate(requests),
        np.concatenate(rows),
        tuple(message for part in parts for message in part.failures),
    )
