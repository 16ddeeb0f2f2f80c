"""A vFM's loaded state on the host's side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fmplex_backend.errors import Quarantined
from fmplex_backend.repository.artifact import Artifact
from fmplex_backend.repository.layout import socket_dims


@dataclass(eq=False)
class Generation:
    """One version of one vFM as loaded; a new one on every change of its files. Immutable but for its counters."""

    number: int
    vfm: str
    version: int
    artifact: Artifact
    width: int
    path: Path
    """Its packed file."""
    key: tuple[object, ...]
    """What it was made from; the same files and interface give the same key."""
    signed_by: str | None = None
    """The trusted key that has signed it; None where the physical FM has none, and no signature was looked at."""
    virtual_tokens: int = 0
    """Positions that its adapter's prompt takes in every row."""
    pinned: bool = False
    """Whether its adapter keeps its slot."""
    n_bytes: int = 0
    """On the engine's device."""
    rows: int = 0
    """Rows under way; guarded by the dispatcher's lock."""
    retired: bool = False
    """Takes no new rows; it is dropped when ``rows`` is 0."""
    dropped: bool = False
    quarantine: Quarantined | None = None
    """Why none of its rows is run, where one of them has killed engines; guarded likewise."""

    @property
    def sockets(self) -> frozenset[str]:
        """The sockets that its answers fill."""
        return frozenset(socket_dims(self.artifact.kind, self.artifact.pooling, self.width))
