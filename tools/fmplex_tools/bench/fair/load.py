"""Load on a server, from processes of their own: `generator`."""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import sys
import time
from collections.abc import Sequence

import numpy as np

from fmplex_backend.errors import EngineFailure
from fmplex_tools.bench.fair.streams import Stream, Traffic, merge


class Load:
    """``groups`` of streams, a process each, so that a flood does not disturb the clocks of those who measure.

    A context manager; ``with`` starts the processes, `start` the sending, `stop` gives the traffic.
    """

    def __init__(self, url: str, *groups: Sequence[Stream], seed: int = 0) -> None:
        """``url`` is the server's gRPC ``host:port``."""
        self._url, self._groups, self._seed = url, groups, seed
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Load:
        command = [sys.executable, "-m", "fmplex_tools.bench.fair.generator"]
        for number, streams in enumerate(self._groups):
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
            )  # in a session of its own: Ctrl-C is ours to handle
            self._processes.append(process)
            described = [dataclasses.asdict(stream) for stream in streams]
            order = {"url": self._url, "seed": self._seed + 1000 * number, "streams": described}
            self._tell(process, json.dumps(order))
        for process in self._processes:
            assert process.stdout is not None
            if process.stdout.readline() != b"ready\n":
                raise EngineFailure(f"a load process cannot reach {self._url}")
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()

    def start(self) -> float:
        """Send from now on; returns now, in the traffic's clock."""
        for process in self._processes:
            self._tell(process, "go")
        return time.monotonic()

    def stop(self) -> Traffic:
        """Send no more, wait for every answer."""
        for process in self._processes:
            self._tell(process, "stop")
        parts = []
        for process, streams in zip(self._processes, self._groups, strict=True):
            assert process.stdout is not None
            output = process.stdout.read()
            if process.wait() != 0:
                raise EngineFailure(f"a load process ended with code {process.returncode}")
            with np.load(io.BytesIO(output)) as file:
                failures = tuple(str(message) for message in file["failures"])
                parts.append(Traffic(tuple(streams), file["requests"], file["rows"], failures))
        return merge(parts)

    @staticmethod
    def _tell(process: subprocess.Popen[bytes], line: str) -> None:
        assert process.stdin is not None
        process.stdin.write(line.encode() + b"\n")
        process.stdin.flush()
