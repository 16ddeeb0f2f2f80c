"""What stands between a baseline's edge to Triton and its model. No torch and no Triton in here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fmplex_backend.arrays import Array
from fmplex_backend.errors import FMplexError

TEXT, SELECTOR, PROBABILITIES = "text", "task", "probabilities"
"""Names of the tensors: both inputs BYTES [1], the output FP32 [labels]."""
FILL = -1.0
"""No probability: what stands behind those of a task that has fewer labels than the widest of its model."""

Answer = Array | FMplexError
"""Of one request: probabilities, float32 [rows, labels], or what is wrong with it."""


@dataclass(frozen=True)
class Rows:
    """One request: a text for each row, and where the model has several tasks, the task of each."""

    texts: Sequence[bytes]
    tasks: Sequence[bytes] = ()


@dataclass(frozen=True)
class Settings:
    """A baseline's parameters; in ``config.pbtxt`` they are text."""

    backbone: Path
    fleet: Path
    """Folder with the version folder ``<task>/1`` of each task."""
    tasks: tuple[str, ...]
    threads: int = 0
    """Compute threads; 0 is every core that the process may use."""
    device: str = "cpu"
    fence: str = ""
    """See `fmplex_tools.bench.compare.fence.join`."""

    def parameters(self) -> dict[str, str]:
        """As they stand in ``config.pbtxt``."""
        return {key: ",".join(value) if key == "tasks" else str(value) for key, value in vars(self).items()}

    @classmethod
    def parse(cls, parameters: dict[str, str]) -> Settings:
        """The opposite of `parameters`."""
        return cls(
            backbone=Path(parameters["backbone"]),
            fleet=Path(parameters["fleet"]),
            tasks=tuple(parameters["tasks"].split(",")),
            threads=int(parameters["threads"]),
            device=parameters["device"],
            fence=parameters["fence"],
        )

    @property
    def versions(self) -> list[Path]:
        """The version folder of each task."""
        return [self.fleet / task / "1" for task in self.tasks]


class Model(Protocol):
    """What a baseline runs."""

    def answer(self, batch: Sequence[Rows]) -> list[Answer]:
        """As many answers as requests. What is wrong with one request is its answer, and fails no other."""
