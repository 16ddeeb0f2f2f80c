"""One server as its metrics tell it over time: figures, the last minutes, and since when it is silent. Time is an
argument, so that this needs no server."""

from __future__ import annotations

from collections.abc import Mapping

from fmplex_tools.dashboard.history import SPAN, Ring, Series
from fmplex_tools.dashboard.view import FmView, ServerView, Silence
from fmplex_tools.top.figures import FmFigures, Follower, VfmFigures
from fmplex_tools.top.scrape import FmScrape

FM_FIELDS = ("rows_per_s", "busy", "queue")
VFM_FIELDS = (
    *("p50_ms", "p99_ms", "share", "entitled", "queue", "running", "rows_per_s"),
    *("rejected_per_s", "expired_per_s", "failed_per_s"),
)
FROZEN = 20.0
"""Seconds without newer values until a host counts as silent; one with a thousand busy vFMs tells some every 7."""


class Followed:
    """See the module. Times are seconds since 1970, by one clock, and never go back."""

    def __init__(self, name: str, url: str, interval: float) -> None:
        """``interval``: seconds between two looks."""
        self.name, self.url = name, url
        self._points = int(SPAN / interval) + 2
        self._follower = Follower()
        self._figures: dict[str, FmFigures] = {}
        """Physical FM → its last figures, also while it is silent."""
        self._newer: dict[str, float] = {}
        """Physical FM → when it told something newer."""
        self._missing: dict[str, Silence] = {}
        """Physical FMs that the server, which answers, tells nothing of."""
        self._silent: Silence | None = None
        self._rings: dict[tuple[str, str | None], Ring] = {}

    def answered(self, now: float, found: Mapping[str, FmScrape]) -> None:
        """The server told ``found``."""
        self._silent = None
        for figures in self._follower.follow(found):
            fm = figures.fm
            self._missing.pop(fm, None)
            if self._figures.get(fm) is not figures:
                self._figures[fm], self._newer[fm] = figures, now
                if figures.seconds:
                    self._note(now, figures)
        for fm in self._figures.keys() - found.keys():
            self._missing.setdefault(fm, Silence(now, "the server tells nothing of this physical FM"))
        self._forget(now)
        self._mark_gaps(now)

    def failed(self, now: float, why: str) -> None:
        """The server did not answer."""
        self._silent = Silence(self._silent.since if self._silent else now, why)
        self._mark_gaps(now)

    def view(self, now: float) -> ServerView:
        """What is known of it now."""
        fms = (FmView(figures, self._silence_of(fm, now)) for fm, figures in sorted(self._figures.items()))
        return ServerView(self.name, self.url, tuple(fms), self._silent)

    def history(self, now: float, fm: str, vfm: str | None = None) -> Series:
        """Of a physical FM or one of its vFMs: field → see `Ring.series`; empty where nothing is known."""
        ring = self._rings.get((fm, vfm))
        return ring.series(now) if ring is not None else {}

    def _silence_of(self, fm: str, now: float) -> Silence | None:
        if self._silent is not None:
            return self._silent
        if fm in self._missing:
            return self._missing[fm]
        newer = self._newer[fm]
        return Silence(newer, "its host tells nothing newer") if now - newer > FROZEN else None

    def _note(self, now: float, figures: FmFigures) -> None:
        self._ring(figures.fm, None, FM_FIELDS).append(now, {name: getattr(figures, name) for name in FM_FIELDS})
        for vfm in figures.vfms:
            self._ring(figures.fm, vfm.vfm, VFM_FIELDS).append(now, _values(vfm))

    def _ring(self, fm: str, vfm: str | None, fields: tuple[str, ...]) -> Ring:
        if (fm, vfm) not in self._rings:
            self._rings[fm, vfm] = Ring(fields, self._points)
        return self._rings[fm, vfm]

    def _mark_gaps(self, now: float) -> None:
        for (fm, _), ring in self._rings.items():
            if self._silence_of(fm, now) is not None:
                ring.gap(now)

    def _forget(self, now: float) -> None:
        """What has been gone for longer than charts show."""
        for fm, silence in list(self._missing.items()):
            if now - silence.since > SPAN:
                del self._missing[fm], self._figures[fm], self._newer[fm]
        for key in [key for key, ring in self._rings.items() if now - ring.latest > SPAN]:
            del self._rings[key]


def _values(vfm: VfmFigures) -> dict[str, float | None]:
    return {name: getattr(vfm, name) for name in VFM_FIELDS}
