"""`fmplex serve` in a process of its own, for a benchmark."""

from __future__ import annotations

import contextlib
import itertools
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from fmplex_backend.errors import EngineFailure
from fmplex_tools.server.process import free_ports

START_SECONDS = 240.0


@contextlib.contextmanager
def serving(repository: Path) -> Iterator[tuple[str, psutil.Process]]:
    """HTTP ``host:port``, and the process. Raises `EngineFailure` where it does not come up."""
    ports = free_ports(3)
    options = zip(("--http-port", "--grpc-port", "--metrics-port"), map(str, ports), strict=True)
    log = repository.parent / "serve.log"
    command = [sys.executable, "-m", "fmplex_tools.cli", "serve", "-r", str(repository), "--log-file", f"{log}.triton"]
    with log.open("w") as out:
        process = subprocess.Popen(
            [*command, *itertools.chain(*options)], stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
        )
    try:
        end = time.monotonic() + START_SECONDS
        while "ready in" not in log.read_text(encoding="utf-8"):
            if process.poll() is not None or time.monotonic() > end:
                raise EngineFailure(f"fmplex serve does not come up:\n{log.read_text(encoding='utf-8')}")
            time.sleep(0.2)
        yield f"127.0.0.1:{ports[0]}", psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
