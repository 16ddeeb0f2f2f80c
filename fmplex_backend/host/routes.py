"""Which vFM answers on which port. Pure: no files, no threads, and ``now`` is an argument.

1. A vFM (an ensemble with one port) claims its port; a bundle (several ports) claims none.
2. A port that two vFMs claim is answered with an error for both. A request does not tell which of them it came
   through, so to answer it would be to answer one of them from the other's adapter.
3. A port that passes from one vFM to another answers UNAVAILABLE for `HANDOVER` seconds, until Triton, which polls the
   repository by itself, has surely dropped the ensemble that used it before.
4. A vFM that moves to another port answers on the old one too for as long, if nobody else claims it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from fmplex_backend.errors import FMplexError, Refused, Unavailable
from fmplex_backend.host.generations import Generation
from fmplex_backend.repository.config import Policy

HANDOVER = 1.5


@dataclass(frozen=True)
class Serving:
    """The port's vFM is up."""

    generation: Generation
    policy: Policy


@dataclass(frozen=True)
class Blocked:
    """The port answers with an error; the message names the vFM and the remedy."""

    error: FMplexError


Route = Serving | Blocked


@dataclass(frozen=True)
class Claim:
    """One vFM's claim to its port: served there, or refused, or (neither) still loading."""

    vfm: str
    port: int
    serving: Serving | None = None
    refusal: FMplexError | None = None


@dataclass
class RouteTable:
    """Remembers who answered where last, for rules 3 and 4."""

    _last: dict[int, tuple[str, float]] = field(default_factory=dict)
    """Port → the vFM that was served on it, and when it last was."""

    def build(self, claims: Iterable[Claim], now: float) -> dict[int, Route]:
        """The routes for ``claims``; called at every scan, so that it sees who left when."""
        by_port: dict[int, list[Claim]] = {}
        for claim in claims:
            by_port.setdefault(claim.port, []).append(claim)
        routes = {port: self._one(port, claimants, by_port, now) for port, claimants in by_port.items()}
        serving = {c.vfm: c.serving for cs in by_port.values() for c in cs if c.serving is not None}
        for port, (vfm, last) in list(self._last.items()):
            if now >= last + HANDOVER:
                del self._last[port]
            elif port not in routes and vfm in serving:
                routes[port] = serving[vfm]
        return routes

    def _one(self, port: int, claimants: list[Claim], taken: Mapping[int, object], now: float) -> Route:
        if len(claimants) > 1:
            names = " and ".join(repr(c.vfm) for c in claimants)
            free = next(p for p in range(len(taken) + 1) if p not in taken)
            return Blocked(Refused(f"vFMs {names} both map port {port}, so neither is served; give one port {free}"))
        (claim,) = claimants
        if claim.serving is None:
            return Blocked(claim.refusal or Unavailable(f"vFM {claim.vfm!r} is loading; retry in 500 ms"))
        before, last = self._last.get(port, (claim.vfm, now))
        if before != claim.vfm and now < last + HANDOVER:
            return Blocked(Unavailable(f"port {port} passes from {before!r} to {claim.vfm!r}; retry in 500 ms"))
        self._last[port] = (claim.vfm, now)
        return claim.serving
