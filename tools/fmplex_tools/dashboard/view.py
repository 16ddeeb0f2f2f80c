"""What is shown, as plain data: what is known of each server, the headline, a row for each vFM. Time is an argument."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fmplex_tools.dashboard.words import Tone
from fmplex_tools.top.figures import FmFigures, VfmFigures

TONES: dict[str, Tone] = {
    "no answer": "bad",
    "quarantined": "bad",
    "failing": "bad",
    "refusing": "warn",
    "no figures yet": "idle",
    "serving": "good",
    "idle": "idle",
}
"""States of a vFM."""
_ATTENTION = ("no answer", "quarantined", "failing", "refusing")


@dataclass(frozen=True)
class Silence:
    """Something does not answer."""

    since: float
    """In seconds since 1970."""
    why: str


@dataclass(frozen=True)
class FmView:
    """One physical FM of a server: what it told last, and whether it still does."""

    figures: FmFigures
    silent: Silence | None = None

    @property
    def measured(self) -> FmFigures | None:
        """Its figures, where there are any of now: never of a silent one, nor before its host was seen twice."""
        return self.figures if self.silent is None and self.figures.seconds else None


@dataclass(frozen=True)
class ServerView:
    """One server."""

    name: str
    """Of its device in a fleet, else host and port."""
    url: str
    fms: tuple[FmView, ...] = ()
    silent: Silence | None = None


@dataclass(frozen=True)
class FleetView:
    """What the controller said last, as `fmplex_tools.fleet.controller.Controller.status` makes it."""

    name: str
    told: dict[str, Any] | None = None
    silent: Silence | None = None


@dataclass(frozen=True)
class Snapshot:
    """All that is known at one moment; ``number`` grows with every change."""

    at: float
    number: int
    servers: tuple[ServerView, ...]
    fleet: FleetView | None = None


@dataclass(frozen=True)
class Headline:
    """Sums over everything that answers; None where nothing does."""

    rows_per_s: float | None = None
    requests_per_s: float | None = None
    errors_per_s: float | None = None
    """Rejected, expired and failed requests."""
    queue: int | None = None
    running: int = 0
    vfms: int = 0
    """Replicas count as one."""
    active: int = 0
    """vFMs that had rows served."""
    engines: int = 0
    busy: float | None = None
    """Part of the time of all engines."""
    worst_vfm: str = ""
    """The one of the highest p99."""
    worst_p99_ms: float | None = None


@dataclass(frozen=True)
class VfmRow:
    """One vFM on one server. ``figures`` is None where they are not known."""

    vfm: str
    server: str
    fm: str
    state: str
    """One of `TONES`."""
    figures: VfmFigures | None
    weight: float

    @property
    def id(self) -> str:
        """Of this row and no other."""
        return f"{self.server}/{self.fm}/{self.vfm}"

    @property
    def tone(self) -> Tone:
        """How bad its state is."""
        return TONES[self.state]

    @property
    def rank(self) -> int:
        """Less for what wants attention; all others are alike, so that no row jumps with every request."""
        return _ATTENTION.index(self.state) if self.state in _ATTENTION else len(_ATTENTION)


def errors_per_s(vfm: VfmFigures) -> float:
    """Requests that were not served, but for those that were wrong themselves."""
    return vfm.rejected_per_s + vfm.expired_per_s + vfm.failed_per_s


def headline(servers: Iterable[ServerView]) -> Headline:
    """See `Headline`."""
    fms = [found for server in servers for fm in server.fms if (found := fm.measured) is not None]
    if not fms:
        return Headline()
    vfms = [vfm for fm in fms for vfm in fm.vfms]
    engines = sum(fm.engines for fm in fms)
    slowest = max((vfm for vfm in vfms if vfm.p99_ms is not None), key=lambda v: v.p99_ms or 0.0, default=None)
    return Headline(
        rows_per_s=sum(fm.rows_per_s for fm in fms),
        requests_per_s=sum(vfm.requests_per_s for vfm in vfms),
        errors_per_s=sum(map(errors_per_s, vfms)),
        queue=sum(fm.queue for fm in fms),
        running=sum(vfm.running for vfm in vfms),
        vfms=len({vfm.vfm for vfm in vfms}),
        active=len({vfm.vfm for vfm in vfms if vfm.rows_per_s}),
        engines=engines,
        busy=sum(fm.busy * fm.engines for fm in fms) / engines if engines else None,
        worst_vfm=slowest.vfm if slowest else "",
        worst_p99_ms=slowest.p99_ms if slowest else None,
    )


def rows(servers: Iterable[ServerView]) -> list[VfmRow]:
    """Those that want attention first, then by name."""
    made = []
    for server in servers:
        for fm in server.fms:
            measured = fm.measured is not None
            for vfm in fm.figures.vfms:
                state = "no answer" if fm.silent else vfm_state(vfm) if measured else "no figures yet"
                figures = vfm if measured else None
                made.append(VfmRow(vfm.vfm, server.name, fm.figures.fm, state, figures, vfm.weight))
    return sorted(made, key=lambda row: (row.rank, row.vfm, row.server, row.fm))


def vfm_state(vfm: VfmFigures) -> str:
    """One of `TONES`, by the figures of an interval."""
    if vfm.quarantined:
        return "quarantined"
    if vfm.failed_per_s:
        return "failing"
    if vfm.rejected_per_s or vfm.expired_per_s:
        return "refusing"
    return "serving" if vfm.rows_per_s or vfm.queue or vfm.running else "idle"
