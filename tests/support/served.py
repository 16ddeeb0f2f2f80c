"""``fmplex serve`` as a user runs it, in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tritonclient.grpc.model_config_pb2 import ModelConfig

from fmplex_backend.repository.config import CONFIG_FILE, write_config
from fmplex_tools.server.process import free_ports
from support.live import wait_for
from support.recipes import RECIPES, write_vfm

FMPLEX = [sys.executable, "-m", "fmplex_tools.cli"]


def make_small_repository(folder: Path, backbone: Path) -> Path:
    """Physical FM ``tiny`` with one good vFM and one whose weight is wrong."""
    repository = folder / "repository"
    (repository / "tiny" / "1").mkdir(parents=True)
    config = ModelConfig(backend="fmplex", max_batch_size=64)
    config.parameters["backbone"].string_value = str(backbone)
    config.parameters["engines"].string_value = "cpu,cpu"
    config.parameters["threads"].string_value = "1"
    write_config(repository / "tiny" / CONFIG_FILE, config)
    write_vfm(repository, "good", 0, RECIPES["lora_qv_4"], backbone, fm="tiny")
    write_vfm(repository, "bad", 1, RECIPES["bare_two"], backbone, fm="tiny", parameters={"weight": "0"})
    return repository


class Served:
    """A running ``fmplex serve`` and what it has printed so far."""

    def __init__(self, repository: Path, *options: str) -> None:
        self.ports = free_ports(3)
        names = ("--http-port", "--grpc-port", "--metrics-port")
        where = [part for name, port in zip(names, self.ports, strict=True) for part in (name, str(port))]
        log = repository.parent / "server.log"
        self.process = subprocess.Popen(
            [*FMPLEX, "serve", "-r", str(repository), "--log-file", str(log), *where, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"COLUMNS": "200", "NO_COLOR": "1"},
        )
        self.printed = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.printed += line

    @property
    def http(self) -> str:
        return f"127.0.0.1:{self.ports[0]}"

    def wait_ready(self) -> None:
        wait_for(lambda: "ready in" in self.printed or self.process.poll() is not None, "serve is ready")
        assert "ready in" in self.printed, self.printed

    def finish(self) -> int:
        code = self.process.wait(60)
        self._reader.join()
        return code


@contextmanager
def serving(repository: Path, *options: str) -> Iterator[Served]:
    """``fmplex serve``, ended whatever happens in the block."""
    served = Served(repository, *options)
    try:
        yield served
    finally:
        if served.process.poll() is None:
            served.process.send_signal(signal.SIGTERM)
        served.finish()


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """One ``fmplex`` command to its end."""
    return subprocess.run([*FMPLEX, *arguments], capture_output=True, text=True, check=False, timeout=120)
