"""Which requests may go unanswered while vFMs come and go and clients give up; all others are counted as failures."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import grpc  # type: ignore[import-untyped]

from fmplex_tools.bench.engine.churn_chaos import Placed
from fmplex_tools.bench.engine.churn_client import Impatience

GRACE = 5.0
"""Seconds after a vFM was taken out or put back in which it may be unavailable."""
WHILE_CHANGING = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND}
WHEN_IMPATIENT = {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}


@dataclass
class Errors:
    """Requests that were not answered."""

    grace: float = GRACE
    allowed: Counter[str] = field(default_factory=Counter)
    """Kind → how many; of those who gave up, or of vFMs that are out, or have just been taken out or put back."""
    others: Counter[str] = field(default_factory=Counter)
    """Kind → how many, of those that nothing excuses."""
    messages: list[str] = field(default_factory=list)
    """Of the first of those."""

    def note(self, error: Any, vfm: Placed, impatience: Impatience | None, sent: float) -> None:
        """Sort gRPC's ``error`` of a request to ``vfm``, sent at ``sent`` on the monotonic clock."""
        code = error.code()
        if impatience is not None and code in WHEN_IMPATIENT:
            self.allowed[f"{code.name}, gave up by {impatience.way}"] += 1
        elif code in WHILE_CHANGING and (None in (vfm.port, vfm.served) or sent <= vfm.moved + self.grace):
            self.allowed[f"{code.name}, after {vfm.last_move}"] += 1
        else:
            self.others[code.name] += 1
            if len(self.messages) < 10:
                since = f"{sent - vfm.moved:.1f} s after {vfm.last_move}, should serve version {vfm.served}"
                self.messages.append(f"{vfm.name}: {code.name}: {error.details()} ({since})")
