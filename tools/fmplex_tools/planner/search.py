"""The largest number that is good, found by doubling and halving."""

from __future__ import annotations

from collections.abc import Callable


def largest(good: Callable[[int], bool], most: int | None = None, close: float = 0.0) -> int:
    """Where all less than a good one are good; 0 where 1 is not, and ``most`` at most.

    ``close``: part of it by which the answer may be too small; 0: exactly.
    """
    low, high = 0, 1
    while (most is None or high <= most) and good(high):
        low, high = high, high * 2
    if most is not None and high > most:
        if most == low or good(most):
            return most
        high = most
    while high - low > max(1, close * low):
        middle = (low + high) // 2
        low, high = (middle, high) if good(middle) else (low, middle)
    return low
