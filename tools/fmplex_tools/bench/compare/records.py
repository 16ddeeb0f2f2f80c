"""What a comparison has found, as plain data that goes to JSON and back."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fmplex_tools.bench.compare.answers import Summary


@dataclass(frozen=True)
class Standing:
    """One deployment with so many tasks, apart from any load."""

    deployment: str
    tasks: int
    round: int
    fence: str
    """How it was fenced, in words; empty where it was not."""
    ready_seconds: float
    """From the start of tritonserver to an answer of every task."""
    add_seconds: float | None
    """From a new task's rename into the repository to its first answer; None where that takes a restart."""
    memory_bytes: int
    """PSS of all its processes, warm."""
    parity: float
    """Largest difference of a probability to plain transformers + peft."""


@dataclass(frozen=True)
class Cell:
    """One deployment under one load."""

    deployment: str
    tasks: int
    round: int
    case: str
    load: float
    """Of the reference's capacity."""
    digest: str
    """Of the schedule: the same for all deployments."""
    summary: Summary
    """Under a flood: of all tasks but the one that floods."""
    flooder: Summary | None
    cpu_seconds_per_1000: float
    """Of all the server's processes, for 1,000 answers."""
    stolen: float
    """Part of the machine's time that its hypervisor gave to others meanwhile."""
    cdf: tuple[tuple[float, float], ...]
    """(ms, part of the requests that took no longer)."""
    per_second: tuple[int, ...]
    """Answers in each second, under a flood those to the others."""


@dataclass(frozen=True)
class Failure:
    """A deployment that could not be started, or not be measured."""

    deployment: str
    tasks: int
    round: int
    reason: str


_Item = TypeVar("_Item", Standing, Cell, Failure)


@dataclass
class Record:
    """All of it."""

    capacity: dict[str, float] = field(default_factory=dict)
    """``"<tasks> <lengths>"`` → requests a second that the reference answers at most."""
    standings: list[Standing] = field(default_factory=list)
    cells: list[Cell] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def as_data(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> Record:
        """The opposite of `as_data`."""
        cells = [
            Cell(
                **{
                    **cell,
                    "cpu_seconds_per_1000": _number(cell["cpu_seconds_per_1000"]),
                    "summary": _summary(cell["summary"]),
                    "flooder": _summary(cell["flooder"]) if cell["flooder"] else None,
                    "cdf": tuple(map(tuple, cell["cdf"])),
                    "per_second": tuple(cell["per_second"]),
                }
            )
            for cell in data["cells"]
        ]
        standings = [Standing(**standing) for standing in data["standings"]]
        return cls(dict(data["capacity"]), standings, cells, [Failure(**failure) for failure in data["failures"]])


def merged(records: Iterable[Record]) -> Record:
    """Several runs as the rounds of one; the capacities are those of the last one that measured them."""
    whole, rounds = Record(), 0
    for record in records:
        whole.capacity |= record.capacity
        whole.standings += _later(record.standings, rounds)
        whole.cells += _later(record.cells, rounds)
        whole.failures += _later(record.failures, rounds)
        rounds = 1 + max((cell.round for cell in whole.cells), default=-1)
    return whole


def _later(items: list[_Item], rounds: int) -> list[_Item]:
    return [dataclasses.replace(item, round=item.round + rounds) for item in items]


def _summary(data: dict[str, Any]) -> Summary:
    numbers: dict[str, Any] = {name: _number(value) for name, value in data.items() if name != "task_mean_ms"}
    return Summary(**numbers, task_mean_ms=tuple(map(_number, data["task_mean_ms"])))


def _number(value: float | None) -> float:
    """NaN is null in JSON."""
    return math.nan if value is None else value
