"""A placement: which replica of which demand is on which device; what planning makes, keeps and shows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from fmplex_backend.errors import InvalidInput, NotFound
from fmplex_tools.planner.problem import Problem


@dataclass(frozen=True)
class Placement:
    """vFM → the devices that its replicas are on, by number. vFMs that are missing did not fit."""

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
    """Device → physical FM → vFMs on it."""
    missing: list[str] = []
    """vFMs that did not fit."""

    @classmethod
    def of(cls, placement: Placement, problem: Problem) -> PlanFile:
        """``placement`` by names."""
        fm_of = fm_names(problem)
        devices: dict[str, dict[str, list[str]]] = {}
        for device, vfms in placement.by_device().items():
            own: dict[str, list[str]] = defaultdict(list)
            for vfm in vfms:
                own[fm_of[vfm]].append(vfm)
            devices[problem.device_names[device]] = {fm: sorted(names) for fm, names in sorted(own.items())}
        return cls(devices=devices, missing=placement.missing(problem))

    def placement(self, problem: Problem) -> Placement:
        """By numbers; devices that are not there any more are left out, and so is what was only on them."""
        numbers = {name: number for number, name in enumerate(problem.device_names)}
        on: dict[str, list[int]] = defaultdict(list)
        for device, fms in self.devices.items():
            if device in numbers:
                for vfm in (vfm for vfms in fms.values() for vfm in vfms):
                    on[vfm].append(numbers[device])
        return Placement({vfm: tuple(sorted(set(devices))) for vfm, devices in on.items()})


def read_plan(path: Path) -> PlanFile:
    """Raises `NotFound` or `InvalidInput`."""
    try:
        return PlanFile.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFound(f"no plan {path}; `fmplex plan FLEET.yaml --out {path}` makes one") from None
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise InvalidInput(f"{path}: no plan: {error}") from None


def fm_names(problem: Problem) -> Mapping[str, str]:
    """vFM → its physical FM."""
    return {name: problem.fms[demand.fm].name for demand in problem.demands for name in demand.names}
