"""What operators do to a fleet all day, at random: publish, roll back, remove, put back, edit weights.

Everything is made beside the repository and moved in, or out, by one rename.
"""

from __future__ import annotations

import itertools
import math
import os
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fmplex_backend.repository.config import CONFIG_FILE
from fmplex_tools.bench.engine.fleet import Fleet

SPARE_PORTS = 3
MOST_OUT = 0.25
"""Part of the fleet that is out at a time, at most."""
WEIGHTS = (0.5, 1, 2, 4)


@dataclass
class Placed:
    """One vFM as the repository has it."""

    index: int
    name: str
    port: int | None = None
    """None while it is out."""
    versions: set[int] = field(default_factory=set)
    history: list[tuple[float, int | None]] = field(default_factory=list)
    """When, on the monotonic clock, which version became the highest; None: it was taken out."""
    moved: float = -math.inf
    """When it was last taken out or put back: until soon after, it may be unavailable. A new version is no excuse."""
    last_move: str = "start"

    @property
    def served(self) -> int | None:
        """The version that it should answer with."""
        return max(self.versions, default=None)

    def stale_seconds(self, version: int, sent: float) -> float:
        """How long before ``sent`` the ``version`` that answered was last the one to serve; 0 where it was later."""
        spans = itertools.pairwise([*self.history, (math.inf, None)])
        ends = [end for (_, served), (end, _) in spans if served == version]
        return max(0.0, sent - max(ends, default=sent))


class Chaos:
    """Changes the vFMs 0 … ``count`` - 1 of ``fleet`` in ``repository``. Not thread-safe."""

    def __init__(self, fleet: Fleet, repository: Path, beside: Path, count: int, versions: int, seed: int) -> None:
        self._fleet, self._repository, self._beside, self._most = fleet, repository, beside, versions
        self._chance = random.Random(seed)
        self._numbers = itertools.count()
        self.vfms = {fleet.name(index): Placed(index, fleet.name(index)) for index in range(count)}
        self._free = list(range(count + SPARE_PORTS))
        self.counts: dict[str, int] = {}
        """Change → how often it was made."""
        self._operations: tuple[Callable[[], Placed | None], ...] = (
            self._publish,
            self._publish,
            self._roll_back,
            self._remove,
            self._put_back,
            self._put_back,
            self._edit_weight,
        )

    def step(self) -> None:
        """Make one change that is possible now."""
        while True:
            operation = self._chance.choice(self._operations)
            vfm = operation()
            if vfm is not None:
                what = operation.__name__.removeprefix("_").replace("_", " ")
                self.counts[what] = self.counts.get(what, 0) + 1
                return

    def put_all(self, version: int) -> None:
        """Every vFM there, with the versions 1 … ``version``."""
        wanted = set(range(1, version + 1))
        for vfm in self.vfms.values():
            if vfm.port is None:
                self._bring(vfm, wanted)
                continue
            for number in sorted(wanted - vfm.versions):
                self._add_version(vfm, number)
            for number in sorted(vfm.versions - wanted, reverse=True):
                self._drop_version(vfm, number)

    def _there(self, *, versions: Callable[[set[int]], bool] = bool) -> Placed | None:
        found = [vfm for vfm in self.vfms.values() if vfm.port is not None and versions(vfm.versions)]
        return self._chance.choice(found) if found else None

    def _publish(self) -> Placed | None:
        vfm = self._there(versions=lambda there: max(there) < self._most)
        if vfm is not None:
            self._add_version(vfm, self._chance.randint(max(vfm.versions) + 1, self._most))
        return vfm

    def _roll_back(self) -> Placed | None:
        vfm = self._there(versions=lambda there: len(there) > 1)
        if vfm is not None:
            self._drop_version(vfm, max(vfm.versions))
        return vfm

    def _remove(self) -> Placed | None:
        out = sum(vfm.port is None for vfm in self.vfms.values())
        vfm = self._there() if out + 1 <= max(1, MOST_OUT * len(self.vfms)) else None
        if vfm is not None:
            assert vfm.port is not None
            self._note_move(vfm, "remove")
            self._discard(self._repository / vfm.name)
            self._free.append(vfm.port)
            vfm.port, vfm.versions = None, set()
            self._note_move(vfm, "remove")
            self._note(vfm)
        return vfm

    def _put_back(self) -> Placed | None:
        out = [vfm for vfm in self.vfms.values() if vfm.port is None]
        vfm = self._chance.choice(out) if out else None
        if vfm is not None:
            numbers = range(1, self._most + 1)
            self._bring(vfm, set(self._chance.sample(numbers, self._chance.randint(1, self._most))))
        return vfm

    def _edit_weight(self) -> Placed | None:
        vfm = self._there()
        if vfm is not None:
            assert vfm.port is not None
            draft = self._beside / f"draft{next(self._numbers)}"
            draft.mkdir()
            weight = {"weight": f"{self._chance.choice(WEIGHTS):g}"}
            self._fleet.write_config(draft, vfm.index, port=vfm.port, parameters=weight)
            os.replace(draft / CONFIG_FILE, self._repository / vfm.name / CONFIG_FILE)
            draft.rmdir()
        return vfm

    def _bring(self, vfm: Placed, versions: set[int]) -> None:
        """Put ``vfm`` in on any free port, perhaps one that another has just left."""
        vfm.port = self._free.pop(self._chance.randrange(len(self._free)))
        made = self._beside / f"made{next(self._numbers)}"
        self._fleet.write_vfm(made, vfm.index, sorted(versions), port=vfm.port)
        os.rename(made, self._repository / vfm.name)
        vfm.versions = set(versions)
        self._note_move(vfm, "put back")
        self._note(vfm)

    def _add_version(self, vfm: Placed, number: int) -> None:
        made = self._beside / f"made{next(self._numbers)}"
        self._fleet.write_version(made, vfm.index, number)
        os.rename(made, self._repository / vfm.name / str(number))
        vfm.versions.add(number)
        self._note(vfm)

    def _drop_version(self, vfm: Placed, number: int) -> None:
        self._discard(self._repository / vfm.name / str(number))
        vfm.versions.discard(number)
        self._note(vfm)

    def _discard(self, folder: Path) -> None:
        gone = self._beside / f"gone{next(self._numbers)}"
        os.rename(folder, gone)
        shutil.rmtree(gone)

    @staticmethod
    def _note(vfm: Placed) -> None:
        vfm.history.append((time.monotonic(), vfm.served))

    @staticmethod
    def _note_move(vfm: Placed, what: str) -> None:
        """Called before it moves out too: who reads this from another thread must never be ahead of it."""
        vfm.moved, vfm.last_move = time.monotonic(), what
