"""What is compared: how many tasks, under which loads. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fmplex_backend.errors import InvalidInput
from fmplex_tools.bench.compare.workload import Lengths, Workload

REFERENCE = "best_effort"
"""The deployment whose capacity the loads are parts of."""
LOADS: Mapping[str, float] = {"light": 0.2, "middle": 0.5, "heavy": 0.8}
"""Parts of the reference's capacity."""
VARIATIONS: Mapping[str, Mapping[str, Any]] = {
    "zipf": {"popularity": "zipf"},
    "bursty": {"arrivals": "bursty"},
    "short": {"lengths": "short"},
    "long": {"lengths": "long"},
}
"""At middle load; rows of other lengths at half the capacity for these."""
FLOOD = "flooder"
FLOOD_LOAD, FLOOD_RATE = 0.2, 1.0
"""All tasks at this part of the capacity, and task 0 with as much again as this part of it."""
WARM = 2.0
"""Seconds of each load that do not count."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be measured."""

    source: Path
    """Repository with the physical FM; only read."""
    fm: str = "minilm"
    deployments: tuple[str, ...]
    tasks: tuple[int, ...] = (2, 4, 8, 16)
    varied: int = 8
    """The number of tasks that also has `VARIATIONS` and the flood; 0 for none."""
    seconds: float = 15.0
    """Of each load, `WARM` included."""
    rounds: int = 1
    threads: int = 0
    seed: int = 0

    def check(self) -> None:
        """Raise `InvalidInput` where there is nothing to compare."""
        if REFERENCE not in self.deployments:
            raise InvalidInput(f"deployments {', '.join(self.deployments)}: {REFERENCE} must be one, the loads are its")
        if self.seconds <= WARM + 1:
            raise InvalidInput(f"seconds {self.seconds:g}: more than {WARM + 1:g}, of which {WARM:g} do not count")

    def order(self, position: int) -> tuple[str, ...]:
        """The deployments, the reference first; the others begin with another one each time."""
        others = [name for name in self.deployments if name != REFERENCE]
        turn = position % max(1, len(others))
        return (REFERENCE, *others[turn:], *others[:turn])

    def lengths(self, tasks: int) -> tuple[Lengths, ...]:
        """For which the capacity is needed."""
        return ("mixed", "short", "long") if tasks == self.varied else ("mixed",)

    def cases(self, tasks: int, capacity: Mapping[Lengths, float]) -> list[Case]:
        """The loads on ``tasks`` tasks, with the reference's ``capacity`` in requests a second."""

        def case(name: str, part: float, lengths: Lengths = "mixed", **changed: Any) -> Case:
            rate = part * capacity[lengths]
            made = Workload(tasks=tasks, seconds=self.seconds, seed=self.seed, rate=rate, lengths=lengths, **changed)
            return Case(name, part, made)

        cases = [case(name, part) for name, part in LOADS.items()]
        if tasks == self.varied:
            cases += [case(name, LOADS["middle"], **changed) for name, changed in VARIATIONS.items()]
            cases.append(case(FLOOD, FLOOD_LOAD, flood=FLOOD_RATE * capacity["mixed"]))
        return cases


@dataclass(frozen=True)
class Case:
    """One load."""

    name: str
    part: float
    """Of the reference's capacity."""
    workload: Workload = field(repr=False)
