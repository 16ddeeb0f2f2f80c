"""Whether an idle engine still lives: it is asked every second; the host's own absence is not held against it. Pure."""

from __future__ import annotations

LISTEN_SECONDS = 0.25
"""Between two looks."""
BEAT_SECONDS = 1.0
"""An engine from which nothing was heard for so long is asked, unless it has work to answer for."""
ABSENCE = 1.0
"""A look that comes so much later than it should: the host itself was stopped, and knows nothing of the engine."""


class Heartbeat:
    """Of one engine process. All times in seconds of one clock."""

    def __init__(self, now: float) -> None:
        self._looked = self._heard = now
        self._asked: float | None = None

    def look(self, now: float) -> bool:
        """To be called every `LISTEN_SECONDS`; False where the host was absent, and all that is owed is owed anew."""
        absent = now - self._looked > LISTEN_SECONDS + ABSENCE
        self._looked = now
        if absent:
            self._heard, self._asked = now, None
        return not absent

    def heard(self, now: float) -> None:
        """The engine has said something."""
        self._heard, self._asked = now, None

    def ask(self, now: float) -> bool:
        """Whether to ask the idle engine now; it then owes an answer."""
        if self._asked is not None or now - self._heard < BEAT_SECONDS:
            return False
        self._asked = now
        return True

    def owed(self, now: float) -> float:
        """Seconds for which an answer is owed, 0 where none is."""
        return 0.0 if self._asked is None else now - self._asked
