"""Looks at servers, and at a fleet, until it is closed: a thread each, so that none waits for another."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from fmplex_backend.errors import FMplexError
from fmplex_tools.dashboard.followed import Followed
from fmplex_tools.dashboard.history import Series
from fmplex_tools.dashboard.view import FleetView, Silence, Snapshot
from fmplex_tools.top.scrape import FmScrape, scrape

Scrape = Callable[[str], dict[str, FmScrape]]
Status = Callable[[], dict[str, Any]]
TIMEOUT = 5.0
"""Seconds for a server to tell its metrics."""
_REST = 2.0
"""Of the time that a look took, at least, is rested: reading 1,000 busy vFMs takes half a second of a core."""


def scrape_soon(url: str) -> dict[str, FmScrape]:
    """`scrape`, with less patience."""
    return scrape(url, TIMEOUT)


class Watch:
    """See the module. A context manager; `snapshot` and `history` may be called from any thread."""

    def __init__(self, interval: float, *, scrape: Scrape = scrape_soon) -> None:
        """``interval``: seconds between two looks."""
        self.interval, self._scrape = interval, scrape
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._number = 0
        self._followed: dict[str, Followed] = {}
        self._looking: dict[str, tuple[str, threading.Event]] = {}
        """Server → its metrics, and what ends the looks at it."""
        self._fleet: FleetView | None = None
        self._threads: list[threading.Thread] = []

    # ---- what is known ----

    def snapshot(self) -> Snapshot:
        """All that is known now."""
        now = time.time()
        with self._lock:
            servers = tuple(self._followed[name].view(now) for name in sorted(self._followed))
            return Snapshot(now, self._number, servers, self._fleet)

    def history(self, server: str, fm: str, vfm: str | None = None) -> Series:
        """See `Followed.history`; of a server that is not looked at, nothing."""
        with self._lock:
            followed = self._followed.get(server)
            return followed.history(time.time(), fm, vfm) if followed is not None else {}

    # ---- what is looked at ----

    def servers(self, urls: Mapping[str, str]) -> None:
        """Look at these servers, name → metrics, and at no others from now on."""
        with self._lock:
            for name, (old, stop) in list(self._looking.items()):
                if urls.get(name) != old:
                    stop.set()
                    del self._looking[name]
                    if name not in urls:  # one that comes back elsewhere goes on where it was
                        del self._followed[name]
            for name, url in urls.items():
                if name not in self._looking:
                    self._looking[name] = url, threading.Event()
                    followed = self._followed.setdefault(name, Followed(name, url, self.interval))
                    followed.url = url
                    self._begin(f"look at {name}", self._look, name, url, self._looking[name][1])

    def fleet(self, name: str, status: Status) -> None:
        """Follow the fleet ``name``: its status, and every server that it tells of."""
        with self._lock:
            self._fleet = FleetView(name)
            self._begin(f"fleet {name}", self._ask, name, status)

    def _begin(self, name: str, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, name=name, args=arguments, daemon=True)
        self._threads = [one for one in self._threads if one.is_alive()]
        self._threads.append(thread)
        thread.start()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        """Threads end by themselves: what they wait for is no reason to wait."""
        self._stop.set()
        for _url, stop in self._looking.values():
            stop.set()

    # ---- in threads ----

    def _look(self, name: str, url: str, stop: threading.Event) -> None:
        while not stop.is_set():
            begun = time.monotonic()
            found, why = self._told(url)
            now = time.time()
            with self._lock:
                if stop.is_set():
                    return
                followed = self._followed[name]
                if found is not None:
                    followed.answered(now, found)
                else:
                    followed.failed(now, why)
                self._number += 1
            stop.wait(max(self.interval, _REST * (time.monotonic() - begun)))

    def _told(self, url: str) -> tuple[dict[str, FmScrape] | None, str]:
        try:
            return self._scrape(url), ""
        except FMplexError as error:
            return None, str(error)
        except Exception as error:  # the page goes on and says what happened
            return None, f"{type(error).__name__}: {error}"

    def _ask(self, name: str, status: Status) -> None:
        while not self._stop.is_set():
            told, why, begun = None, "", time.monotonic()
            try:
                told = status()
            except FMplexError as error:
                why = str(error)
            except Exception as error:  # as above
                why = f"{type(error).__name__}: {error}"
            with self._lock:
                before = self._fleet or FleetView(name)
                if told is not None:
                    self._fleet = FleetView(name, told)
                else:
                    since = before.silent.since if before.silent else time.time()
                    self._fleet = FleetView(name, before.told, Silence(since, why))
                self._number += 1
            if told is not None:
                self.servers(metrics_of(told))
            self._stop.wait(max(self.interval, _REST * (time.monotonic() - begun)))


def metrics_of(told: Mapping[str, Any]) -> dict[str, str]:
    """Device → where its server tells its metrics, of those that have one, by a fleet's status."""
    found = {}
    for name, device in told["devices"].items():
        report = device["report"]
        if report is not None and (report["up"] or report["pid"]):
            found[name] = f"http://{report['host']}:{report['ports']['metrics']}/metrics"
    return found
