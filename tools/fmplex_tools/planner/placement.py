"""A placement: which replica of which demand is on which device; what planning makes, keeps and shows."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from fmplex_backend.errors import InvalidInput, NotFound
from fmplex_tools.planner.problem import Problem


@dataclass(frozen=True)
class Placement:
    """vFM → the devices that its replicas are on, by number. vFMs that are missing did not fit.

    A bundle stands for its vFMs (`fmplex_tools.planner.problem.Demand`).
    """

    on: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def by_device(self) -> dict[int, list[str]]:
        """Device → its vFMs, in order; only devices that have some."""
        found: dict[int, list[str]] = defaultdict(list)
        for vfm, devices in self.on.items():
            for device in devices:
                found[device].append(vfm)
        return dict(sorted(found.items()))

    def price(self, problem: Problem) -> float:
        """Of the devices that are used."""
        return sum(problem.kinds[problem.kind_of[device]].price for device in self.by_device())

    def missing(self, problem: Problem) -> list[str]:
        """vFMs that did not fit."""
        return [name for demand in problem.demands for name in demand.names if name not in self.on]


class PlanFile(BaseModel):
    """A placement as a file."""

    model_config = ConfigDict(extra="forbid")

    devices: dict[str, dict[str, list[str]]]
    """Device → physical FM → vFMs and bundles on it."""
    missing: list[str] = []
    """vFMs and bundles that did not fit."""

    @classmethod
    def of(cls, placement: Placement, problem: Problem) -> PlanFile:
        """``placement`` by names."""
        demand_of = {name: demand for demand in problem.demands for name in demand.names}
        devices: dict[str, dict[str, list[str]]] = {}
        for device, vfms in placement.by_device().items():
            own: dict[str, list[str]] = defaultdict(list)
            for vfm in vfms:
                own[problem.fms[demand_of[vfm].fm].name] += demand_of[vfm].all_of(vfm)
            devices[problem.device_names[device]] = {fm: sorted(names) for fm, names in sorted(own.items())}
        missing = [name for vfm in placement.missing(problem) for name in demand_of[vfm].all_of(vfm)]
        return cls(devices=devices, missing=missing)

    def placement(self, problem: Problem) -> Placement:
        """By numbers; devices that are not there any more are left out, and so is what was only on them."""
        numbers = {name: number for number, name in enumerate(problem.device_names)}
        on: dict[str, list[int]] = defaultdict(list)
        for device, fms in self.devices.items():
            if device in numbers:
                for vfm in (vfm for vfms in fms.values() for vfm in vfms):
                    on[vfm].append(numbers[device])
        for demand in problem.demands:
            if demand.vfms:  # where most of it is, should it not all be there yet
                parts = [on.pop(name, []) for name in demand.all_of(demand.names[0])]
                most = Counter(device for part in parts for device in part).most_common(demand.replicas)
                if most:
                    on[demand.names[0]] = [device for device, _ in most]
        return Placement({vfm: tuple(sorted(set(devices))) for vfm, devices in on.items()})


def read_plan(path: Path) -> PlanFile:
    """Raises `NotFound` or `InvalidInput`."""
    try:
        return PlanFile.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFound(f"no plan {path}; `fmplex plan FLEET.yaml --out {path}` makes one") from None
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise InvalidInput(f"{path}: no plan: {error}") from None
