"""Changing a placement as little as it can be: what has a place keeps it, as long as its device is not too full."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fmplex_tools.planner.fast import drop_partial
from fmplex_tools.planner.packing import Packing, Piece
from fmplex_tools.planner.placement import Placement
from fmplex_tools.planner.problem import FULL, Problem


@dataclass(frozen=True)
class Changes:
    """From one placement to the next. A vFM moves where a replica of it that stays has another device."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    moved: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    """vFM → devices before and after, of those that differ."""


def changes(before: Placement, after: Placement) -> Changes:
    """What is to be done to get from one to the other."""
    moved = {}
    for vfm in before.on.keys() & after.on.keys():
        old, new = set(before.on[vfm]), set(after.on[vfm])
        if old - new:
            moved[vfm] = (tuple(sorted(old - new)), tuple(sorted(new - old)))
    return Changes(
        tuple(sorted(after.on.keys() - before.on.keys())),
        tuple(sorted(before.on.keys() - after.on.keys())),
        dict(sorted(moved.items())),
    )


def replan(problem: Problem, before: Placement) -> Packing:
    """A placement for ``problem`` that keeps what it can of ``before``."""
    packing = Packing(problem)
    homeless: list[Piece] = []
    for number, demand in enumerate(problem.demands):
        for place, name in enumerate(demand.names):
            piece = Piece(number, place)
            kept = before.on.get(name, ())[: demand.replicas]
            for device in kept:
                packing.add(piece, device)
            homeless += [piece] * (demand.replicas - len(kept))
    for device in range(problem.devices):
        homeless += _relieved(packing, device)
    wanted = [piece for piece in homeless if piece.demand not in problem.hopeless]
    wanted.sort(key=lambda piece: (problem.demands[piece.demand].strict, -problem.demands[piece.demand].memory))
    drop_partial(packing, [*packing.place(wanted), *(piece for piece in homeless if piece.demand in problem.hopeless)])
    return packing


def _relieved(packing: Packing, device: int) -> list[Piece]:
    """What has to go so that the device holds the rest; of what takes most, the least."""
    gone = []
    while packing.on[device] and (kept_apart := _clash(packing, device)) is not None:
        packing.remove(kept_apart, device)
        gone.append(kept_apart)
    while packing.on[device] and max(packing.fullness(device).values()) > FULL:
        alike = {piece.demand: piece for piece in packing.on[device]}  # those of one demand all take the same
        piece = max(alike.values(), key=lambda one: _relief(packing, device, one))
        packing.remove(piece, device)
        gone.append(piece)
    return gone


def _clash(packing: Packing, device: int) -> Piece | None:
    """One of two that are to be kept apart."""
    seen: set[int] = set()
    for piece in packing.on[device]:
        groups = packing.problem.demands[piece.demand].apart
        if groups & seen:
            return piece
        seen |= groups
    return None


def _relief(packing: Packing, device: int, piece: Piece) -> tuple[float, int]:
    """How much less full, where it is fullest, the device would be without it; of equals, what has fewer replicas."""
    before = max(packing.fullness(device).values())
    packing.remove(piece, device)
    after = max(packing.fullness(device).values())
    packing.add(piece, device)
    relief = before - after if before != after else 0.0
    return relief, -packing.problem.demands[piece.demand].replicas
