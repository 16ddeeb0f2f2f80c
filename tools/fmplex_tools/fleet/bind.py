"""Which node has which device of a fleet. Pure.

A node offers devices by Ray's custom resources, ``fmplex:KIND``. A node that comes takes the place of one that is gone
before it takes a new one, so that what was on that one is on it again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

RESOURCE = "fmplex:"


@dataclass(frozen=True)
class Node:
    """One machine of the cluster, or what plays one."""

    id: str
    name: str
    address: str
    offers: Mapping[str, int]
    """Kind of device → how many it has."""


@dataclass(frozen=True)
class Bound:
    """A device that a node has."""

    node: str
    """Its id."""
    place: int
    """Which one of its kind on the node, from 0."""


def offers_of(resources: Mapping[str, float]) -> dict[str, int]:
    """Kind → devices, of a node's resources."""
    return {
        name.removeprefix(RESOURCE): int(count)
        for name, count in resources.items()
        if name.startswith(RESOURCE) and count >= 1
    }


def bind(counts: Mapping[str, int], nodes: Sequence[Node], before: Mapping[str, Bound]) -> dict[str, Bound]:
    """Device → where it is, of those that are anywhere; ``counts``: devices of each kind that the fleet names.

    Devices stay where they are as long as their node offers them. What nodes offer beyond ``counts`` is not used.
    """
    made: dict[str, Bound] = {}
    for kind, count in counts.items():
        free = [Bound(node.id, place) for node in nodes for place in range(node.offers.get(kind, 0))]
        names = [f"{kind}-{number}" for number in range(count)]
        for name in names:
            if (bound := before.get(name)) in free:
                made[name] = bound
                free.remove(bound)
        left = [name for name in names if name not in made]
        for name in sorted(left, key=lambda name: name not in before):  # stable: those that were lost first
            if free:
                made[name] = free.pop(0)
    return made


def unused(counts: Mapping[str, int], nodes: Sequence[Node]) -> dict[str, str]:
    """Node → why something that it offers is not used."""
    found = {}
    for node in nodes:
        if unknown := sorted(set(node.offers) - set(counts)):
            found[node.name] = f"offers {unknown[0]!r}, which the fleet file does not name"
    for kind, count in counts.items():
        offered = sum(node.offers.get(kind, 0) for node in nodes)
        if offered > count:
            found[kind] = f"{offered} of them are offered; the fleet file says {count}"
    if not any(node.offers for node in nodes):
        example = f"""--resources='{{"{RESOURCE}{next(iter(counts))}": 1}}'"""
        found["nodes"] = f"none of {len(nodes)} offers a device: start them with {example}"
    return found
