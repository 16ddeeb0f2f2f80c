"""Keeps a tritonserver serving: looks at it from outside, and starts another one where it has ended or hangs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from fmplex_backend.errors import EngineFailure, FMplexError
from fmplex_backend.repository.layout import physical_fms
from fmplex_tools.server.process import TritonServer
from fmplex_tools.server.watch import Trouble, trouble
from fmplex_tools.serving import fetch_status

LOOK_SECONDS = 1.0
"""Between two looks."""
LOOK_TIMEOUT = 5.0
"""For one physical FM."""
PATIENCE = 3
"""Looks in a row that fail before the server counts as hung."""
ATTEMPTS = 3
"""Starts of a server that loses a host while it loads it, or crashes: as where the machine stalls meanwhile."""
GOOD_LIFE = 60.0
"""Seconds; one that ends sooner is followed by a pause before the next, twice as long each time…"""
LONGEST_PAUSE = 60.0
"""…up to this."""


class Supervisor:
    """One tritonserver at a time. `start` the first one, `watch` until it is time to stop, `stop`."""

    def __init__(self, make: Callable[[], TritonServer], say: Callable[[str], None], startup_timeout: float) -> None:
        """``make``: a server that has not been started; ``say``: is told what happens, in a line."""
        self._make, self._say, self._timeout = make, say, startup_timeout
        self.server = make()
        self._fms: list[str] = []
        """Physical FMs that serve; one whose files are broken is nobody's trouble."""
        self._coming: list[str] = []
        """Those that do not serve so far."""
        self._looked_at = -1
        """When the repository's folders were changed last, in nanoseconds, as of the last look for physical FMs."""
        self._ready_at = 0.0
        self.wrong: str | None = "it is starting"
        """Why it does not serve, by the last look; None where it does."""

    def start(self, stop: threading.Event) -> None:
        """Start the server; returns when it is ready, or ``stop`` is set. Raises `EngineFailure`."""
        for attempt in range(ATTEMPTS):
            self.server.start()
            try:
                self.server.wait_ready(self._timeout, stop)
                break
            except EngineFailure as error:
                if not (self.server.lost or self.server.crashed) or attempt == ATTEMPTS - 1:
                    raise
                self._say(f"{str(error).splitlines()[0].rstrip(':')}; starting another one")
                self.server.kill()
                self.server = self._make()
        self._ready_at = time.monotonic()
        self.server.note_segments()
        self._fms, self._looked_at = [], -1
        self._find_fms()
        self.wrong = None

    def _find_fms(self) -> None:
        """Those that have come since the last time. The repository is read only where folders have come or gone."""
        repository = self.server.options.repository
        if (changed := repository.stat().st_mtime_ns) != self._looked_at:
            there = physical_fms(repository)
            self._fms = [fm for fm in self._fms if fm in there]
            self._coming = [fm for fm in there if fm not in self._fms]
            self._looked_at = changed
        came = [fm for fm in self._coming if self._serves(fm)]
        self._fms += came
        self._coming = [fm for fm in self._coming if fm not in came]

    def _serves(self, fm: str) -> bool:
        try:
            fetch_status(self.server.options.http, fm, LOOK_TIMEOUT)
        except FMplexError:
            return False
        return True

    def watch(self, stop: threading.Event) -> None:
        """Until ``stop`` is set."""
        failures = 0
        while not stop.wait(LOOK_SECONDS):
            self.server.note_segments()
            if self.server.exit_code is not None:
                what = f"tritonserver ended by itself with code {self.server.exit_code}"
            elif self.server.lost is not None:
                what = self.server.lost
            elif (found := self._trouble()) is None:
                failures, self.wrong = 0, None
                self._find_fms()
                continue
            else:
                failures, self.wrong = failures + 1, found.what
                if failures < PATIENCE and not found.certain:
                    continue
                what = f"tritonserver does not serve: {found.what}"
            failures = 0
            self._replace(what, stop)

    def _trouble(self) -> Trouble | None:
        options = self.server.options
        return trouble(options.http, options.metrics, self._fms, LOOK_TIMEOUT)

    def _replace(self, what: str, stop: threading.Event) -> None:
        """Start another server, as often as it takes."""
        pause = 0.0 if time.monotonic() - self._ready_at > GOOD_LIFE else 1.0
        while True:
            self.wrong = what
            self._say(f"{what}; starting another one" + (f" in {pause:.0f} s" if pause else ""))
            self.server.kill()
            if stop.wait(pause):
                return
            begun = time.monotonic()
            self.server = self._make()
            try:
                self.start(stop)
            except FMplexError as error:
                what, pause = str(error), min(LONGEST_PAUSE, max(1.0, 2 * pause))
                continue
            if not stop.is_set():
                self._say(f"tritonserver is ready again after {time.monotonic() - begun:.1f} s")
            return

    def stop(self) -> None:
        """Let the server answer what is in flight, and end it with every process of it."""
        self.wrong = "it is stopping"
        self.server.stop()
