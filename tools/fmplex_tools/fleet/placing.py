"""Planning on the devices that a fleet really has."""

from __future__ import annotations

from collections import Counter

from fmplex_tools.planner.fleet_file import Fleet
from fmplex_tools.planner.placement import PlanFile
from fmplex_tools.planner.planning import plan as planned


def plan_on(fleet: Fleet, devices: list[str], before: PlanFile | None) -> PlanFile:
    """A plan of ``fleet`` on these of its devices. What no device holds is in its ``missing``."""
    if not devices or not fleet.vfms:
        return PlanFile(devices={}, missing=list(fleet.fm_of()))
    real: dict[str, list[str]] = {}
    for name in devices:
        real.setdefault(kind_of(name), []).append(name)
    # The planner numbers devices from 0 and takes each for being there.
    called = {f"{kind}-{place}": name for kind, names in real.items() for place, name in enumerate(names)}
    back = {name: place for place, name in called.items()}
    fewer = fleet.model_copy(
        update={
            "devices": {
                kind: spec.model_copy(update={"count": len(real[kind])})
                for kind, spec in fleet.devices.items()
                if kind in real
            },
            "fms": {
                name: fm.model_copy(update={"cost": {kind: cost for kind, cost in fm.cost.items() if kind in real}})
                for name, fm in fleet.fms.items()
            },
        }
    )
    old = None
    if before is not None:
        old = PlanFile(devices={back[name]: fms for name, fms in before.devices.items() if name in back})
    made = planned(fewer, before=old, checked=0)
    file = PlanFile.of(made.placement, made.problem)
    return PlanFile(devices={called[place]: fms for place, fms in file.devices.items()}, missing=file.missing)


def kind_of(device: str) -> str:
    """``cpu`` of ``cpu-3``."""
    return device.rpartition("-")[0]


def by_vfm(plan: PlanFile) -> dict[str, set[str]]:
    """vFM → devices; those without a place too."""
    made: dict[str, set[str]] = {vfm: set() for vfm in plan.missing}
    for device, fms in plan.devices.items():
        for vfms in fms.values():
            for vfm in vfms:
                made.setdefault(vfm, set()).add(device)
    return made


def sufficient(fleet: Fleet, devices: list[str], before: PlanFile) -> list[str]:
    """As few of ``devices`` as hold ``fleet``, those first that hold most ``before``; all, where fewer do not."""
    ideal = Counter(map(kind_of, plan_on(fleet, devices, None).devices))
    held = {name: sum(map(len, fms.values())) for name, fms in before.devices.items()}
    chosen = []
    for name in sorted(devices, key=lambda name: (-held.get(name, 0), devices.index(name))):
        if ideal[kind_of(name)] > 0:
            ideal[kind_of(name)] -= 1
            chosen.append(name)
    chosen.sort(key=devices.index)
    fewer, all_of_them = plan_on(fleet, chosen, before), plan_on(fleet, devices, before)
    return chosen if len(fewer.missing) <= len(all_of_them.missing) else devices
