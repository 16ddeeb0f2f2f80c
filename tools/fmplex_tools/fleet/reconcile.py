"""What is to be done next so that a fleet becomes what its plan says. Pure.

A vFM is brought to its new devices and serves there before the door leads to them, and it leaves its old ones only when
the door has not led there for a while. So a move loses no request, and a device that cannot take a vFM changes nothing
for its clients. The vFMs of a bundle stay where they are for as long as the bundle does.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType

GRACE = 3.0
"""Seconds for which a vFM stays where the door does not lead any more: requests may be on their way."""


@dataclass(frozen=True)
class Seen:
    """A fleet as it is."""

    alive: Collection[str]
    """Devices whose servers are up."""
    present: Mapping[str, Collection[str]]
    """Device → vFMs that it was told to hold last."""
    serving: Mapping[str, Collection[str]]
    """Device → vFMs that its server answers for."""


@dataclass(frozen=True)
class Next:
    """What is to be."""

    holds: dict[str, set[str]]
    """Device → vFMs."""
    leads: dict[str, tuple[str, ...]]
    """vFM that is wanted → devices that the door leads to; none where nobody serves it."""
    moving: frozenset[str]
    """vFMs that are not served yet by all the devices that they are planned for."""


def reconcile(
    wanted: Mapping[str, Collection[str]],
    seen: Seen,
    unled: Callable[[str, str], float],
    grace: float = GRACE,
    bundles: Mapping[str, Collection[str]] = MappingProxyType({}),
) -> Next:
    """``wanted``: vFM or bundle → its devices by the plan. ``unled``: seconds since the door led one to a device.

    ``bundles``: bundle → its vFMs.
    """
    holders: dict[str, set[str]] = {}
    for device, vfms in seen.present.items():
        for vfm in vfms:
            holders.setdefault(vfm, set()).add(device)
    holds: dict[str, set[str]] = {device: set() for device in seen.present}
    leads, moving = {}, set()
    for vfm in sorted(wanted.keys() | holders.keys()):
        planned = set(wanted.get(vfm, ()))
        serves = {device for device in seen.alive if vfm in seen.serving.get(device, ())}
        ready = bool(planned) and planned <= serves
        if vfm in wanted:
            leads[vfm] = tuple(sorted(planned if ready else serves))
            if not ready:
                moving.add(vfm)
        stays = vfm in wanted and not ready
        for device in planned | holders.get(vfm, set()):
            if device in planned or stays or unled(vfm, device) < grace:
                holds.setdefault(device, set()).add(vfm)
    for device, held in holds.items():
        for bundle in held & bundles.keys():
            held |= set(bundles[bundle]) & set(seen.present.get(device, ()))
    return Next(holds, leads, frozenset(moving))
