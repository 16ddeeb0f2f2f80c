"""A repository, its registry and an engine of paper: what unit tests of the registry look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fmplex_backend.encoders.text import TextEncoder
from fmplex_backend.host.dispatcher import Dispatcher
from fmplex_backend.host.log import HostLog
from fmplex_backend.host.registry import Registry
from fmplex_backend.host.requests import Pending
from fmplex_backend.host.routes import Serving
from fmplex_backend.repository.config import FMSettings
from fmplex_backend.scheduling.cost import UNKNOWN
from fmplex_backend.scheduling.fifo import FifoQueue
from support.facts import facts_of
from support.fake_engine import FakeEngine
from support.recipes import Recipe, publish, stage, write_version, write_vfm

PLAIN = Recipe(outputs=2)


class Site:
    """A repository, its registry, and the engine that holds what the registry loads."""

    def __init__(self, folder: Path, backbone: Path, *, trusted_keys: str = "") -> None:
        self.repository, self.backbone = folder / "repository", backbone
        (self.repository / "minilm").mkdir(parents=True)
        (self.repository / "minilm/config.pbtxt").write_text('backend: "fmplex" max_batch_size: 64')
        self.engine = FakeEngine(facts_of(backbone))
        self.log: list[str] = []
        self.dispatcher = Dispatcher(FifoQueue(8, UNKNOWN), [self.engine], _answer, HostLog(self.log.append))  # type: ignore[list-item]
        facts = self.dispatcher.start()
        (folder / "work").mkdir()
        settings = FMSettings(backbone="tiny", ports=16, trusted_keys=trusted_keys)
        self.registry = Registry(
            self.repository,
            "minilm",
            settings,
            facts,
            TextEncoder(facts),
            self.dispatcher,
            folder / "work",
            self.log.append,
        )
        self.work = folder / "work"

    def add(self, name: str, port: int, recipe: Recipe = PLAIN, *, parameters: dict[str, str] | None = None) -> Path:
        """Put a vFM in at version 1; its folder."""
        return write_vfm(self.repository, name, port, recipe, self.backbone, parameters=parameters)

    def version(self, name: str, number: int, seed: int = 1) -> Path:
        """Put another version in; its folder."""
        staging = stage(self.repository, f"{name}.{number}")
        write_version(staging / "v", PLAIN, self.backbone, seed)
        return publish(staging / "v", self.repository / name / str(number))

    def scan(self, times: int = 2) -> None:
        """Twice, so that what changed has come to rest."""
        for _ in range(times):
            self.registry.scan()

    def record(self, name: str) -> dict[str, Any]:
        """Its status."""
        return next(vfm for vfm in self.registry.status() if vfm["name"] == name)

    def served(self, port: int) -> tuple[str, int, int] | None:
        """(vFM, version, generation) that answers on ``port``."""
        route = self.registry.routes.get(port)
        if not isinstance(route, Serving):
            return None
        return route.generation.vfm, route.generation.version, route.generation.number


def _answer(request: Pending) -> None:
    request.ask.respond(request.reply())
