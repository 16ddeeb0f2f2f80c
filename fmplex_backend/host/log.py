"""The host's log: what happened, a line each, as text or as JSON.

1. A line about requests names them: the client's id, the vFM and its version.
2. It begins with what happened, one of `EVENTS`; any other line is a note.
3. What requests run into (`REQUEST_EVENTS`) is told sparingly: for one event of one vFM a line every `QUIET_SECONDS`,
   and `MOST_LINES` in that time for all of them. The next line says how many were left out.
4. A line stays a line, whatever clients send, and is of bounded length.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone

from fmplex_backend.errors import AccessDenied, FMplexError
from fmplex_backend.host.counts import outcome_of

REQUEST_EVENTS = ("denied", "expired", "failed", "invalid", "rejected", "slow")
"""What requests run into."""
EVENTS = (*REQUEST_EVENTS, "cannot", "defect", "engine", "quarantined", "refused")
INITIALIZED = "fmplex: the host of physical FM {} is initialized"
"""What a host says on its standard error, past Triton's log: whoever serves has Triton say so next."""
LOG_FORMAT = "FMPLEX_LOG_FORMAT"
"""Environment variable: ``json``, or text."""
QUIET_SECONDS = 10.0
MOST_LINES = 50
LONGEST_ID, LONGEST_REASON = 128, 1000
"""Characters."""
MOST_NAMED = 8
"""Requests in one line; of the others it says how many they are."""
_MOST_KEPT = 10_000


@dataclass(frozen=True)
class Concerned:
    """A request that a line is about."""

    request_id: str
    """The client's own; empty where it gave none."""
    vfm: str | None = None
    """None where the request was for no vFM that is served."""
    version: int | None = None

    def __str__(self) -> str:
        request = f"request {self.request_id[:LONGEST_ID]!r}"
        return request if self.vfm is None else f"{request} of vFM {self.vfm!r} version {self.version}"


def naming(concerned: Sequence[Concerned]) -> str:
    """All of ``concerned``, once each, in words."""
    names = list(dict.fromkeys(map(str, concerned)))
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def event_of(message: str) -> str:
    """What a line says has happened; ``note`` where nothing is wrong."""
    first = message.partition(" ")[0].rstrip(":")
    return first if first in EVENTS else "note"


class HostLog:
    """See the module. May be called from any thread."""

    def __init__(self, write: Callable[[str], None], fm: str = "", *, as_json: bool = False) -> None:
        """``write`` takes a line. With ``as_json`` it is a JSON object, with the physical FM ``fm`` in it."""
        self._write, self._fm, self._as_json = write, fm, as_json
        self._lock = threading.Lock()
        self._told: dict[tuple[str, str], tuple[float, int]] = {}
        """Event and whose → when it was told last, and how many were left out since."""
        self._window = -QUIET_SECONDS
        self._lines = 0
        """Told since ``_window``."""

    def __call__(self, message: str, concerned: Sequence[Concerned] = ()) -> None:
        """Tell ``message``, whatever was told before."""
        self._write(self._json(message, concerned) if self._as_json else message)

    def _json(self, message: str, concerned: Sequence[Concerned]) -> str:
        event = event_of(message)
        line: dict[str, object] = {
            "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            "level": "info" if event == "note" else "warning",
            "fm": self._fm,
            "event": event,
            "message": message,
        }
        if concerned:
            line["requests"] = [
                asdict(each) | {"request_id": each.request_id[:LONGEST_ID]} for each in concerned[:MOST_NAMED]
            ]
        return json.dumps(line, ensure_ascii=False)

    def ended(self, concerned: Sequence[Concerned], error: FMplexError, now: float | None = None) -> None:
        """A request was answered with ``error``. ``now``: seconds of any one clock."""
        event = "denied" if isinstance(error, AccessDenied) else outcome_of(error)
        whose = concerned[0].vfm or str(error)
        self.sparingly(event, whose, concerned, str(error), time.monotonic() if now is None else now)

    def sparingly(self, event: str, whose: str, concerned: Sequence[Concerned], reason: str, now: float) -> None:
        """Tell of ``event``, unless one of ``whose`` was told lately, or too much else; see the module."""
        with self._lock:
            silent = self._left_out((event, whose), now)
        if silent is not None:
            others = f"; {silent} more since the last such line" if silent else ""
            reason = " ".join(reason[:LONGEST_REASON].split())
            self(f"{event}: {naming(concerned)}: {reason}{others}", concerned)

    def _left_out(self, key: tuple[str, str], now: float) -> int | None:
        """Under the lock: how many were left out since the last line of ``key``; None where this one is, too."""
        last, silent = self._told.get(key, (-QUIET_SECONDS, 0))
        if now >= self._window + QUIET_SECONDS:
            self._window, self._lines = now, 0
        if now < last + QUIET_SECONDS or self._lines >= MOST_LINES:
            self._told[key] = (last, silent + 1)
            return None
        if len(self._told) >= _MOST_KEPT:
            self._told.clear()
        self._told[key] = (now, 0)
        self._lines += 1
        return silent
