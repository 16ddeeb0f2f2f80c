"""How many rows a batch may have where the device ran out of memory. Pure; ``now`` is an argument."""

from __future__ import annotations

SECONDS = 60.0
"""After which a batch may be twice as large again."""


class Room:
    """Rows that batches may have."""

    def __init__(self, most: int) -> None:
        """``most``: with memory enough."""
        self._most = self._rows = most
        self._until = 0.0

    def rows(self, now: float) -> int:
        """Most rows of a batch that is made now."""
        if self._rows < self._most and now >= self._until:
            self._rows, self._until = min(self._most, 2 * self._rows), now + SECONDS
        return self._rows

    def shrink(self, fitting: int, now: float) -> bool:
        """A larger batch than ``fitting`` rows did not fit; whether that is less than what was allowed."""
        less, self._rows = fitting < self._rows, max(1, min(self._rows, fitting))
        self._until = now + SECONDS
        return less
