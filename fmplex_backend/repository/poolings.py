"""What a head reads of the backbone's positions, by name: ``mean``, ``cls+mean``, ``each:mean+levels`` …

1. Parts are joined by ``+``: their numbers lie end to end, in the order in which they are named.
2. ``each:`` in front reads every channel of a series by itself and puts them end to end; without it, a part is over all
   positions of all channels. Only a head of it sees one channel apart from another: it is their mixer.
3. ``none`` keeps one vector a position.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Annotated, NamedTuple

from pydantic import AfterValidator

PARTS = ("mean", "cls", "last", "max", "std", "levels")
"""``mean``, ``max`` and ``std`` are over a row's positions without those that the backbone puts in front (an image's
class token and registers); ``cls`` is the first position, ``last`` the last; ``levels`` are the mean and the standard
deviation that a series had before the backbone took them out."""
LEVELS = 2
_EACH = "each:"
_WRITTEN = re.compile(rf"({_EACH})?({'|'.join(PARTS)})(\+({'|'.join(PARTS)}))*")


class Reading(NamedTuple):
    """A pooling taken apart."""

    each: bool
    parts: tuple[str, ...]

    def width(self, hidden: int, channels: int | None = None) -> int:
        """Numbers that a head reads of a row whose positions are ``hidden`` wide."""
        own = sum(LEVELS if part == "levels" else hidden for part in self.parts)
        return own * (channels or 1) if self.each else own


def _check(pooling: str) -> str:
    if pooling != "none" and not _WRITTEN.fullmatch(pooling):
        raise ValueError(
            f"pooling {pooling!r} is none, or one or more of {', '.join(PARTS)}, joined by '+', with '{_EACH}' in "
            "front to read every channel by itself"
        )
    return pooling


Pooling = Annotated[str, AfterValidator(_check)]


@lru_cache(maxsize=256)
def reading(pooling: str) -> Reading | None:
    """``pooling`` taken apart; None for ``none``. Raises ValueError where it is none of ours."""
    if _check(pooling) == "none":
        return None
    return Reading(pooling.startswith(_EACH), tuple(pooling.removeprefix(_EACH).split("+")))


def width_of(pooling: str, hidden: int, channels: int | None = None) -> int:
    """Numbers that a head reads of a row, or of a position where there is no pooling."""
    how = reading(pooling)
    return hidden if how is None else how.width(hidden, channels)
