"""The heuristic: best fit in orders that suit sharing, then devices are emptied one by one while others have room.

vFMs of one FM come one after the other, the strict ones first, so that those whose rounds must be short share devices,
and others need not be as quick as they are.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from fmplex_tools.planner.packing import Packing, Piece, pieces_of
from fmplex_tools.planner.problem import FULLEST, Problem

SECONDS = 40.0
MANY = 20_000
"""Pieces from which on one order is all that there is time for."""


def pack(problem: Problem, seconds: float = SECONDS) -> Packing:
    """A placement with as many vFMs as it finds room for, on devices that cost little; about ``seconds`` at most."""
    until = time.monotonic() + seconds
    orders = _orders(problem)
    found: list[Packing] = []
    for order in orders[:1] if len(pieces_of(problem)) > MANY else orders:
        found.append(_filled(problem, order))
        if time.monotonic() > until:
            break
    best = min(found, key=badness)
    if best.placement().missing(problem) and time.monotonic() < until:
        best = min(best, _filled(problem, _least_first(problem)), key=badness)
    if not problem.spread:
        empty_devices(best, until)
    return best


def badness(packing: Packing) -> tuple[int, float]:
    """What is to be low: vFMs without a place, then the price."""
    placement = packing.placement()
    return len(placement.missing(packing.problem)), placement.price(packing.problem)


_Key = Callable[[Piece], Any]


def _orders(problem: Problem) -> list[_Key]:
    size = [_size(problem, number) for number in range(len(problem.demands))]
    strict = [demand.strict for demand in problem.demands]
    of_fm: dict[int, float] = {}
    for number, demand in enumerate(problem.demands):
        of_fm[demand.fm] = of_fm.get(demand.fm, 0.0) + size[number] * demand.pieces

    def by_fm(piece: Piece) -> Any:
        fm = problem.demands[piece.demand].fm
        return -of_fm[fm], fm, strict[piece.demand], -size[piece.demand]

    return [
        by_fm,
        lambda piece: (strict[piece.demand], -size[piece.demand]),
        lambda piece: (-size[piece.demand], strict[piece.demand]),
    ]


def _least_first(problem: Problem) -> _Key:
    """For where not all fit: those that take least."""
    size = [_size(problem, number) * demand.replicas for number, demand in enumerate(problem.demands)]
    return lambda piece: (size[piece.demand], problem.demands[piece.demand].fm)


def _size(problem: Problem, number: int) -> float:
    """The largest part of a device that one replica takes, where it takes least."""
    demand = problem.demands[number]
    slots = demand.slots / problem.fms[demand.fm].slots
    parts = [
        max(demand.memory / kind.memory, demand.asked[place].work, slots)
        for place, kind in enumerate(problem.kinds)
        if demand.asked[place].ceiling > 0
    ]
    return min(parts, default=float("inf"))


def _filled(problem: Problem, order: _Key) -> Packing:
    packing = Packing(problem)
    pieces = [piece for piece in sorted(pieces_of(problem), key=order) if piece.demand not in problem.hopeless]
    left = packing.place(pieces)
    drop_partial(packing, left)
    return packing


def drop_partial(packing: Packing, left: list[Piece]) -> None:
    """vFMs not all of whose replicas have a place give back what they have; then others may fit."""
    for piece in dict.fromkeys(left):
        for device in packing.devices_of(piece):
            packing.remove(piece, device)
    for piece in dict.fromkeys(left):
        replicas = packing.problem.demands[piece.demand].replicas
        if packing.place([piece] * replicas):
            for device in packing.devices_of(piece):
                packing.remove(piece, device)


def empty_devices(packing: Packing, until: float, most_moves: int | None = None) -> int:
    """Empty devices onto others that are used, those with least on them first; pieces that moved."""
    moved, again = 0, True
    while again:
        again = False
        used = np.flatnonzero(packing.used).tolist()
        for device in sorted(used, key=lambda device: len(packing.on[device])):
            count = len(packing.on[device])
            if time.monotonic() > until or (most_moves is not None and moved + count > most_moves):
                break
            if _emptied(packing, device):
                moved, again = moved + count, True
    return moved


def _emptied(packing: Packing, device: int) -> bool:
    """All of it moved to other devices that are used; else nothing."""
    pieces = sorted(packing.on[device], key=lambda piece: -_size(packing.problem, piece.demand))
    for piece in pieces:
        packing.remove(piece, device)
    within = packing.used
    moved: list[tuple[Piece, int]] = []
    for piece in pieces:
        if (target := packing.best(piece, within)) is None:
            for other, put in moved:
                packing.remove(other, put)
            for other in pieces:
                packing.add(other, device)
            return False
        packing.add(piece, target)
        moved.append((piece, target))
    return True


def least_price(problem: Problem) -> float:
    """No placement of all vFMs that can be placed at all costs less: what they take, were every device filled whole."""
    demands = [demand for number, demand in enumerate(problem.demands) if number not in problem.hopeless]
    if not demands:
        return 0.0
    kinds = problem.kinds
    fms = {demand.fm for demand in demands}
    memory = sum(d.pieces * min(k.price * d.memory / k.memory for k in kinds) for d in demands)
    memory += sum(min(k.price * problem.fms[fm].memory / k.memory for k in kinds) for fm in fms)
    whole = []
    for number, kind in enumerate(kinds):
        alpha = min((problem.fms[fm].alpha[number] for fm in fms), default=0.0)
        loosest = max(demand.asked[number].ceiling for demand in demands)
        free = min(FULLEST, 1 - alpha / loosest) if loosest > 0 and alpha == alpha else FULLEST
        whole.append(kind.price / free if free > 0 else float("inf"))
    work = sum(d.pieces * min(price * one.work for price, one in zip(whole, d.asked, strict=True)) for d in demands)
    cheapest = min(kind.price for kind in kinds)
    slots = max(math.ceil(sum(d.pieces * d.slots for d in demands if d.fm == fm) / problem.fms[fm].slots) for fm in fms)
    devices = max(slots, *(demand.replicas for demand in demands), 1) * cheapest
    bound = max(memory, work, devices)
    return math.ceil(bound / cheapest - 1e-9) * cheapest if len(kinds) == 1 else bound
