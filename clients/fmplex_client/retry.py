"""When to send a request again, and how long to wait before that. Pure: time and chance are arguments.

Only "try again later" is sent again (the server's UNAVAILABLE, or no connection). An inference changes nothing in the
server, so sending it twice is safe even where a connection broke before the answer.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from fmplex_client.errors import DeadlineExceeded, InvalidRequest, ServerUnavailable

_HINT = re.compile(r"(?:retry|again) (?:in|after) (\d+(?:\.\d+)?) ?(ms|s)\b", re.IGNORECASE)


def hinted_delay(message: str) -> float | None:
    """Seconds that the server asks to wait (``… retry in 120 ms``), or None where it does not say."""
    match = _HINT.search(message)
    if match is None:
        return None
    return float(match[1]) * (0.001 if match[2].lower() == "ms" else 1.0)


@dataclass(frozen=True)
class Retry:
    """Exponential backoff with jitter, within the caller's deadline."""

    base_s: float = 0.05
    """Longest first wait."""
    factor: float = 2.0
    cap_s: float = 1.0
    """Longest wait, unless the server asks for more."""
    max_attempts: int | None = None
    """Times a request is sent in all; None is until the deadline. 1 never sends again."""

    def delay(self, failures: int, message: str, remaining: float, rng: Callable[[], float]) -> float | None:
        """Seconds to wait after failure number ``failures`` (from 1), or None to give up.

        ``remaining`` is the time left in seconds, ``rng`` gives numbers in [0, 1). A server's hint is never undercut,
        and up to a quarter is added so that callers who were turned away together do not come back together.
        """
        if self.max_attempts is not None and failures >= self.max_attempts:
            return None
        hint = hinted_delay(message)
        if hint is None:
            wait = min(self.cap_s, self.base_s * self.factor ** min(failures - 1, 64)) * (0.5 + 0.5 * rng())
        else:
            wait = hint * (1.0 + 0.25 * rng())
        return wait if wait < remaining else None


class Deadline:
    """A moment by which the caller wants the answer."""

    def __init__(self, timeout: float, clock: Callable[[], float] = time.monotonic) -> None:
        if not 0 < timeout <= 86_400:
            raise InvalidRequest(f"timeout is {timeout!r} s; give a positive number of seconds, at most 86400")
        self.timeout = timeout
        self._clock = clock
        self._end = clock() + timeout

    def left(self) -> float:
        """Seconds left; negative once it has passed."""
        return self._end - self._clock()

    def remaining(self) -> float:
        """Seconds left. Raises `DeadlineExceeded` where there are none."""
        left = self.left()
        if left <= 0:
            raise DeadlineExceeded(f"no answer within {self.timeout:g} s")
        return left


def too_late(error: DeadlineExceeded, failures: int, refused: ServerUnavailable | None) -> DeadlineExceeded:
    """``error`` of the last try, with why the one before it was refused: a last try may have had no time at all."""
    if refused is None:
        return error
    tries = f"the try before it ({failures} failed): {refused.message}"
    return DeadlineExceeded(f"{error.message}; {tries}", error.status)


def micros(seconds: float) -> int:
    """Seconds as Triton's request ``timeout``: whole microseconds, at least one (0 would mean no limit)."""
    return max(1, int(seconds * 1e6))


random_unit = random.random
"""The default ``rng`` of both clients."""
