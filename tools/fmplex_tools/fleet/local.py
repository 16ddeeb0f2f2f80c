"""Ray clusters of several nodes on this machine: to try a fleet without one, and to measure it."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path

import psutil

from fmplex_backend.errors import Unavailable
from fmplex_tools.fleet.bind import RESOURCE
from fmplex_tools.planner.fleet_file import Fleet
from fmplex_tools.process_tree import kill, tree
from fmplex_tools.server.process import free_ports

HEAD_PORT = 6379
_STARTED = 120.0
_STORE_BYTES = 80_000_000
"""Of Ray's object store, a node: the least that it takes; nothing of ours goes through it."""


def start_nodes(fleet: Fleet, count: int) -> None:
    """``count`` nodes that stay, each offering the next device of the fleet file; the first is the head too.

    Raises `Unavailable` where Ray says no, as where a cluster runs here already.
    """
    for number in range(count):
        try:
            subprocess.run(
                _command(fleet, number, HEAD_PORT), check=True, capture_output=True, text=True, timeout=_STARTED
            )
        except subprocess.CalledProcessError as error:
            said = (error.stderr or error.stdout).strip().splitlines()
            raise Unavailable(f"Ray does not start: {said[-1] if said else error}; `ray stop` ends another") from None
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Unavailable(f"Ray does not start: {error}; pip install 'fmplex[fleet]' has it") from None


class LocalNodes:
    """Nodes that end with this context, and can be killed before: number 0 is the head and offers no device."""

    def __init__(self, fleet: Fleet, count: int) -> None:
        """``count``: nodes beside the head, one for each device."""
        self._fleet, self._count = fleet, count
        [self._port] = free_ports(1)
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    @property
    def address(self) -> str:
        """Of the cluster."""
        return f"127.0.0.1:{self._port}"

    def start(self, number: int) -> None:
        """Start a node, one after the other: together they take each other's ports. Raises `Unavailable`."""
        self._processes[number] = subprocess.Popen(
            [*_command(self._fleet, number, self._port, apart=True), "--block"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        end = time.monotonic() + _STARTED
        while not _joined(process := self._processes[number]):
            if process.poll() is not None or time.monotonic() > end:
                raise Unavailable(f"Ray's node {number} does not start: exit code {process.poll()}")
            time.sleep(0.2)

    def kill(self, number: int) -> None:
        """End a node and every process of it at once."""
        process = self._processes.pop(number)
        kill(tree(process.pid))
        process.wait()

    def workers(self, actor: str) -> dict[int, psutil.Process]:
        """Node → its process that runs ``actor``, of the nodes that have one."""
        found = {}
        for number, process in self._processes.items():
            for child in tree(process.pid):
                with contextlib.suppress(psutil.NoSuchProcess, IndexError):
                    if child.cmdline()[0].startswith(f"ray::{actor}"):
                        found[number] = child
        return found

    def __enter__(self) -> LocalNodes:
        try:
            for number in range(self._count + 1):
                self.start(number)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for number in sorted(self._processes, reverse=True):
            self.kill(number)


def _command(fleet: Fleet, number: int, port: int, *, apart: bool = False) -> list[str]:
    """``apart``: the head offers no device."""
    kinds = [kind for kind, spec in fleet.devices.items() for _ in range(spec.count)]
    place = number - apart
    offers = {f"{RESOURCE}{kinds[place]}": 1} if 0 <= place < len(kinds) else {}
    role = ["--head", "--include-dashboard=false", f"--port={port}"] if number == 0 else [f"--address=127.0.0.1:{port}"]
    return [
        *(str(Path(sys.executable).with_name("ray")), "start", *role),
        *(f"--node-name=node-{number}", "--num-cpus=1", f"--resources={json.dumps(offers)}"),
        *(f"--object-store-memory={_STORE_BYTES}", "--disable-usage-stats"),
    ]


def _joined(node: subprocess.Popen[bytes]) -> bool:
    """Whether it runs its agents, which it starts last."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return any("RuntimeEnvAgent" in " ".join(child.cmdline()) for child in tree(node.pid))
    return False
