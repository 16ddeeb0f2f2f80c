"""What a task of the catalogue is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fmplex_tools.sources import Source
from fmplex_tools.tasks.data import Examples
from fmplex_tools.tasks.options import TaskOptions


@dataclass(frozen=True)
class Probe:
    """What a plain probe reached: a head on frozen features, on a split of its own."""

    metric: str
    value: float


@dataclass(frozen=True)
class Entry:
    """One task."""

    name: str
    """Of its vFM."""
    what: str
    """E.g. ``digit → 0 to 9``."""
    fm: str
    """One of `specs.FMS`."""
    sources: Sequence[Source]
    load: Callable[[], Examples]
    """Raises `FMplexError`."""
    options: TaskOptions
    probe: Probe | None = None
    quick: bool = False
    """Whether it is of the few that ``--quick`` builds."""
    note: str = ""
    """What one must know of its data, e.g. that its test set is small."""
