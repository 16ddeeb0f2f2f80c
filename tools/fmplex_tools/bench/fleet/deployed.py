"""A fleet of nodes on this machine, with vFMs of random weights on two physical FMs."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from fmplex_backend.errors import EngineFailure, FMplexError
from fmplex_tools.bench.engine.fleet import FleetBase, make_fleet
from fmplex_tools.fleet.actors import ControllerHandle, connect, disconnect
from fmplex_tools.fleet.content import read_contents
from fmplex_tools.fleet.folders import fleet_folder
from fmplex_tools.fleet.local import LocalNodes
from fmplex_tools.planner.fleet_file import Fleet
from fmplex_tools.server.process import free_ports

KIND = "cpu"
SETTLED = 240.0
"""Seconds for the fleet to be as planned."""
_RATE = 0.2
"""Rows a second that a vFM is planned for."""


@dataclass(frozen=True, kw_only=True)
class FleetRun(FleetBase):
    """What is to be deployed."""

    nodes: int = 4
    vfms: int = 64
    """On two physical FMs, half each."""
    spare: int = 20
    """More of them, which are in the repository and not served at first."""
    replicas: int = 2
    """Of every vFM."""
    slots: int = 64
    memory: str = "3 GB"
    """Of a node."""
    fm_memory: str = "650 MB"


class Deployed:
    """Such a fleet, running."""

    def __init__(self, run: FleetRun, place: Path) -> None:
        """``place``: a folder for all of it."""
        self.run, self.place = run, place
        self.name = f"bench-{os.getpid()}"
        self.repository = place / "fleet"
        self.fms = (run.fm, f"{run.fm}_two")
        self._port, self._admin = free_ports(2)
        self.names, self.spare = self._make()
        self.alone = self.names[-1]
        """The one that has a single replica: no fault must hit it."""
        self.nodes = LocalNodes(self.fleet(self.names), run.nodes)
        self.controller: ControllerHandle

    def _make(self) -> tuple[list[str], list[str]]:
        """The repository; names of the vFMs that are served, and of the others; the FMs by turns."""
        source = self.place / "source"
        shutil.copytree(self.run.source / self.run.fm, source / self.fms[1])
        each = (self.run.vfms + self.run.spare + 1) // 2
        made = [
            make_fleet(
                *(self.repository, where, fm, each),
                rank=self.run.rank,
                seed=self.run.seed + number,
                prefix="ab"[number],
                settings={"adapter_slots": str(self.run.slots)},
            )
            for number, (where, fm) in enumerate(zip((self.run.source, source), self.fms, strict=True))
        ]
        mixed = [name for pair in zip(*made, strict=True) for name in pair]
        return mixed[: self.run.vfms], mixed[self.run.vfms : self.run.vfms + self.run.spare]

    @property
    def door(self) -> str:
        """``host:port``."""
        return f"127.0.0.1:{self._port}"

    def fleet(self, vfms: Sequence[str], rates: dict[str, float] | None = None) -> Fleet:
        """The fleet file for these."""
        cost = {KIND: {"alpha": 0.012, "beta": 0.00017, "gamma": 0.0002}}
        fm = {"memory": self.run.fm_memory, "slots": self.run.slots, "cost": cost}
        return Fleet.model_validate(
            {
                "devices": {KIND: {"count": self.run.nodes, "memory": self.run.memory}},
                "fms": dict.fromkeys(self.fms, fm),
                "vfms": {
                    name: {
                        "fm": self.fms["ab".index(name[0])],
                        "memory": "400 KB",
                        "rate": (rates or {}).get(name, _RATE),
                        "p99_ms": 4000,
                        "replicas": 1 if name == self.alone else self.run.replicas,
                    }
                    for name in vfms
                },
                "spread": True,
                "run": {
                    "name": self.name,
                    "repository": str(self.repository),
                    "store": str(self.place / "store"),
                    "lost_after": 8,
                    "door": {"port": self._port, "admin": self._admin},
                },
            }
        )

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """While the block runs. Raises `FMplexError`."""
        own = fleet_folder(self.name)
        with self.nodes, contextlib.redirect_stdout(io.StringIO()):  # Ray tells there what is killed here
            connect(self.nodes.address)
            try:
                self.controller = ControllerHandle.start(self.fleet(self.names))
                self.apply(self.names)
                yield
            finally:
                with contextlib.suppress(FMplexError):
                    self.controller.down()
                disconnect()
                shutil.rmtree(own, ignore_errors=True)

    def apply(self, vfms: Sequence[str], rates: dict[str, float] | None = None) -> float:
        """Make it serve these; seconds that it took."""
        begun = time.monotonic()
        fleet = self.fleet(vfms, rates)
        assert fleet.run is not None
        contents = read_contents(fleet, self.repository, fleet.run.store, lambda _: None)
        self.controller.apply(fleet, contents)
        self.wait_settled()
        return time.monotonic() - begun

    def wait_settled(self) -> dict[str, Any]:
        """The status when all is as planned. Raises `EngineFailure` where that takes too long."""
        return self._wait("the fleet is not as planned", lambda told: told["settled"] and not told["missing"])

    def wait_without(self, device: str) -> None:
        """Until nothing is planned for ``device``. Raises `EngineFailure` where that takes too long."""
        self._wait(f"{device} is still counted on", lambda told: not told["devices"][device]["planned"])

    def _wait(self, what_not: str, good: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        end, told = time.monotonic() + SETTLED, dict[str, Any]()
        while time.monotonic() < end:
            with contextlib.suppress(FMplexError):
                told = self.controller.status()
                if good(told):
                    return told
            time.sleep(0.2)
        missing, problems = told.get("missing", ()), told.get("problems", {})
        some = f"; {len(missing)} vFMs have no place, such as {missing[0]}" if missing else ""
        raise EngineFailure(f"{what_not} after {SETTLED:.0f} s{some}; problems: {problems or 'none'}")

    def busiest(self) -> str:
        """The device with most vFMs."""
        devices = self.controller.status()["devices"]
        return str(max(devices, key=lambda name: len(devices[name]["planned"])))

    def serve_process(self, device: str) -> psutil.Process:
        """`fmplex serve` on ``device``."""
        return psutil.Process(self.controller.status()["devices"][device]["report"]["pid"])

    def node_of(self, device: str) -> int:
        """Number of the node that has ``device``."""
        return int(str(self.controller.status()["devices"][device]["node"]).rpartition("-")[2])

    def envoy(self) -> psutil.Process:
        """Of the door."""
        for process in psutil.process_iter(["cmdline"]):
            if f"{self.name}/door" in " ".join(process.info["cmdline"] or ()):
                return psutil.Process(process.pid)
        raise EngineFailure("there is no Envoy")
