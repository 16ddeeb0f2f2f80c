"""Looks at a running server from outside: does it answer inferences, and is what it tells fresh?

Triton calls itself ready over a Python model whose process has ended, so only an inference shows that it serves. The
status of a physical FM is one: it takes the way of every request, but for the engine, which the host itself watches.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

from fmplex_backend.errors import FMplexError
from fmplex_tools.serving import fetch_status
from fmplex_tools.top.scrape import TOLD_AT, scrape

_DEAD = "is not healthy"
"""Triton says so of a stub whose process has ended."""
_NOT_LOADED = ("unknown model", "is not ready", "is not found")
OLDEST = 30.0
"""Seconds since a host's last metrics; they come every second, with 1,000 busy vFMs every 7."""


@dataclass(frozen=True)
class Trouble:
    """What is wrong."""

    what: str
    certain: bool = False
    """Whether it cannot get better by itself."""


def trouble(http: str, metrics: str, fms: Iterable[str], timeout: float) -> Trouble | None:
    """What is wrong with the server at ``http`` and ``metrics`` (each host:port); None where all of ``fms`` serve.

    A physical FM that Triton was told to unload is none of its troubles. A look takes at most about ``timeout`` seconds
    for each physical FM.
    """
    loaded = []
    for fm in fms:
        try:
            fetch_status(http, fm, timeout)
        except FMplexError as error:
            if any(words in str(error) for words in _NOT_LOADED):
                continue
            return Trouble(str(error), _DEAD in str(error))
        loaded.append(fm)
    try:
        silent = silences(metrics, timeout)
    except FMplexError as error:
        return Trouble(str(error)) if loaded else None
    return next((Trouble(reason) for fm in loaded if (reason := silent.get(fm))), None)


def silences(metrics: str, timeout: float) -> dict[str, str | None]:
    """Every physical FM that has told metrics at ``metrics`` (host:port) → what is wrong if that was too long ago.

    Raises `Unavailable`, and `InvalidInput` where there is none.
    """
    told = scrape(f"http://{metrics}/metrics", timeout, TOLD_AT)
    now = time.time()
    return {
        fm: f"physical FM {fm!r} has told no metrics for {now - of.at:.0f} s" if now - of.at > OLDEST else None
        for fm, of in told.items()
    }
