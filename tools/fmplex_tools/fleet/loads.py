"""What comes in for each vFM of a server, by its own metrics."""

from __future__ import annotations

import time
from collections.abc import Mapping

from fmplex_backend.errors import FMplexError
from fmplex_tools.fleet.elastic import Load
from fmplex_tools.top.figures import fm_figures
from fmplex_tools.top.scrape import FmScrape, scrape

STEP = 3.0
"""Seconds between two looks."""
_TIMEOUT = 2.0


class Loads:
    """Of one server at a time; `look` is cheap between two looks."""

    def __init__(self) -> None:
        self._at = 0.0
        self._before: Mapping[str, FmScrape] = {}
        self._told: dict[str, Load] = {}

    def look(self, metrics: str) -> dict[str, Load]:
        """vFM → what has come in between the last two looks, of those that anything has come in for.

        ``metrics``: ``host:port``. Nothing is known of a server that does not answer, and what it was told counts.
        """
        if time.monotonic() - self._at < STEP:
            return self._told
        self._at = time.monotonic()
        try:
            now = scrape(f"http://{metrics}/metrics", _TIMEOUT)
        except FMplexError:
            self._before, self._told = {}, {}
            return self._told
        told = {}
        for fm, after in now.items():
            if (before := self._before.get(fm)) is None or before.at >= after.at:
                continue
            for one in fm_figures(fm, before, after).vfms:
                rows = one.rows_per_s + one.rejected_per_s + one.expired_per_s + one.failed_per_s
                if rows or one.queue or one.running:
                    p99 = one.p99_ms / 1e3 if one.p99_ms is not None else None
                    told[one.vfm] = Load(float(f"{rows:.3g}"), p99)
        self._before, self._told = now, told
        return told
