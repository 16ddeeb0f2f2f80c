"""Hosts that Triton has lost while it loaded them.

Triton takes the process of a Python model for dead that does not get to say that it lives within a second, as happens
where a busy machine stalls, and then waits for ever for it to end (24.10, `StubLauncher::WaitForStubProcess`): while it
starts it never gets ready, later it loads and unloads nothing any more. Such a host says that it is initialized, and
Triton does not say that it is loaded.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from fmplex_backend.host.log import INITIALIZED

LOST = 10.0
"""Seconds from the one to the other that are too many: they come within milliseconds."""
_OURS = re.compile(re.escape(INITIALIZED).replace(r"\{\}", "(.+)"))
_DONE = re.compile(r"(?:successfully (?:loaded|unloaded)|failed to load) '([^']+)'")


class LostHosts:
    """Reads tritonserver's output line by line, in one thread; asked in others."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._initialized: dict[str, float] = {}

    def hear(self, line: str) -> bool:
        """Whether the line was for this alone."""
        if (found := _OURS.fullmatch(line)) is not None:
            self._initialized[found[1]] = self._clock()
            return True
        if (found := _DONE.search(line)) is not None:
            self._initialized.pop(found[1], None)
        return False

    def first(self) -> str | None:
        """A physical FM whose host is lost; None where all are well."""
        now = self._clock()
        return next((fm for fm, since in [*self._initialized.items()] if now - since > LOST), None)
