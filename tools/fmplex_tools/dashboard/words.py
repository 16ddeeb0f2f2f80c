"""Figures and states as people read them. A state is told by a mark and a word, never by its colour alone."""

from __future__ import annotations

import time
from typing import Literal

Tone = Literal["good", "idle", "warn", "bad"]
MARKS: dict[Tone, str] = {"good": "●", "idle": "○", "warn": "▲", "bad": "✕"}
NONE = "–"
"""In place of what is not known."""


def number(value: float | None) -> str:
    """Three digits or so: 0.4, 12.3, 1,234."""
    if value is None:
        return NONE
    if value and value < 0.1:
        return "< 0.1"
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.1f}"


def percent(value: float | None) -> str:
    """Of a part of 1."""
    return NONE if value is None else f"{value:.0%}"


def gigabytes(count: float) -> str:
    """Of bytes."""
    return f"{count / 1e9:.2f}" if count < 1e10 else f"{count / 1e9:.1f}"


def lasting(seconds: float) -> str:
    """How long: 12 s, 3 min, 2 h."""
    if seconds < 120:
        return f"{max(0.0, seconds):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def since(then: float, now: float) -> str:
    """``since 15:42:10 (12 s)``; with the date where that was another day. By the clock of this machine."""
    same_day = time.localtime(then)[:3] == time.localtime(now)[:3]
    clock = time.strftime("%H:%M:%S" if same_day else "%Y-%m-%d %H:%M:%S", time.localtime(then))
    return f"since {clock} ({lasting(now - then)})"


def few(names: list[str], most: int = 6) -> str:
    """The first ones, and how many there are."""
    more = f" … ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def count(amount: int, what: str) -> str:
    """``1 engine``, ``2 engines``."""
    return f"{amount:,} {what}" if amount == 1 else f"{amount:,} {what}s"
