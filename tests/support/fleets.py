"""A fleet as its users run it, on Ray nodes of this machine, and clients that ask it all the time."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fmplex_client import Client, FMplexClientError
from fmplex_tools.files import write_whole
from fmplex_tools.fleet.folders import fleet_folder
from fmplex_tools.server.process import free_ports
from support.live import PATIENCE
from support.served import run

TEXTS = ["a short one", "one that is somewhat longer than the other", "x"]


class Fleet:
    """A fleet file, and the commands on it."""

    def __init__(self, name: str, template: str, folder: Path, repository: Path) -> None:
        """``template`` of the file: what is in capitals in it is filled in by `write`."""
        self.name, self._template = name, template
        self.repository, self.store = repository, folder / "store"
        self.port, self.admin = free_ports(2)
        self.file = folder / "fleet.yaml"
        self.address = ""

    def write(self, vfms: dict[str, str]) -> None:
        """``vfms``: name → what else is said of it than its FM ``tiny``, its rate and p99."""
        lines = "\n".join(f"  {name}: {{fm: tiny, rate: 1, p99_ms: 900{more}}}" for name, more in vfms.items())
        text = self._template.replace("VFMS", lines).replace("NAME", self.name)
        text = text.replace("REPOSITORY", str(self.repository))
        text = text.replace("STORE", str(self.store)).replace("PORT", str(self.port)).replace("ADMIN", str(self.admin))
        write_whole(self.file, text)

    def call(self, *arguments: str, good: bool = True) -> str:
        """``fmplex fleet …``; what it printed."""
        ran = run("fleet", *arguments, "--address", self.address)
        assert (ran.returncode == 0) == good, ran.stdout + ran.stderr
        return " ".join((ran.stdout + ran.stderr).split())

    @property
    def door(self) -> str:
        """``host:port`` for clients."""
        return f"127.0.0.1:{self.port}"

    def forget(self) -> None:
        """What runs of it has on this machine."""
        shutil.rmtree(fleet_folder(self.name), ignore_errors=True)

    def status(self) -> dict[str, Any]:
        """All that the controller says."""
        ran = run("fleet", "status", "--fleet", self.name, "--json", "--address", self.address)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        told: dict[str, Any] = json.loads(ran.stdout)  # on standard error Ray may say what it notices
        return told

    def wait_settled(self, what: str) -> dict[str, Any]:
        """Until all is as it is to be."""
        end = time.monotonic() + PATIENCE
        while not (told := self.status())["settled"]:
            assert time.monotonic() < end, f"not within {PATIENCE} s: {what}: {told}"
        return told


class Load:
    """Clients of ours that ask every vFM all the time and compare every answer."""

    def __init__(self, url: str, expected: dict[str, Any]) -> None:
        self._url, self._expected = url, expected
        self.vfms = list(expected)
        self.wrong: list[str] = []
        self.answered = 0
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(protocol,)) for protocol in ("http", "grpc")]

    def _ask(self, protocol: Any) -> None:
        with Client(self._url, protocol, timeout=60) as client:
            while not self._stop.is_set():
                for vfm in list(self.vfms):
                    try:
                        found = values(client, vfm)
                    except FMplexClientError as error:
                        self.wrong.append(f"{protocol} {vfm}: {error}")
                        continue
                    if not np.allclose(found, self._expected[vfm], atol=1e-4):
                        self.wrong.append(f"{protocol} {vfm}: answers otherwise")
                    self.answered += 1

    def expect(self, vfm: str, values: Any) -> None:
        """From now on it answers so."""
        self._expected[vfm] = values

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """While it asks."""
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join()


def values(client: Client, vfm: str) -> Any:
    """Of `TEXTS`; of a bundle, those of its vFMs one after the other."""
    answers = [row.values() if isinstance(row, dict) else [row] for row in client.predict(vfm, TEXTS)]
    return np.stack([np.concatenate([one.probabilities for one in row]) for row in answers])
