"""The host's end of one engine: start the process, send a message, take the answer, notice its death."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from fmplex_backend.errors import EngineFailure
from fmplex_backend.messages import EngineFailed, EngineReady
from fmplex_backend.repository.config import FMSettings

LIBRARY_PATH = "FMPLEX_ENGINE_LD_LIBRARY_PATH"
"""The library path for engines, where tritonserver needs one of its own that torch must not see."""

_Answer = TypeVar("_Answer")


class EngineDied(EngineFailure):
    """The engine's process ended, hung or closed its socket before it answered."""


class EngineProcess:
    """One engine on one device. Start and use it from one thread, which must outlive it (see `die_with_parent`)."""

    def __init__(self, device: str, settings: FMSettings) -> None:
        self.device = device
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None

    @property
    def pid(self) -> int | None:
        """Process id, None before the start."""
        return self._process.pid if self._process else None

    def start(self, timeout: float) -> EngineReady:
        """Start the process and wait until it holds the backbone. Raises `EngineFailure` with the engine's reason."""
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "fmplex_backend.engine", str(theirs.fileno()), self.device]
            self._process = subprocess.Popen(
                [*command, self._settings.model_dump_json()],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=_environment(),
            )
        self._connection = Connection(ours.detach())
        answer = self._receive(timeout)
        if isinstance(answer, EngineFailed):
            self.kill()
            raise EngineFailure(f"engine on {self.device}: {answer.error}")
        if not isinstance(answer, EngineReady):
            raise EngineFailure(f"engine on {self.device}: answered {type(answer).__name__} on start")
        return answer

    def call(self, message: object, answer: type[_Answer], timeout: float) -> _Answer:
        """Send ``message``, return the answer. Raises `EngineDied` when none of type ``answer`` comes in time."""
        if self._connection is None:
            raise EngineDied(f"engine on {self.device}: is not running")
        try:
            self._connection.send(message)
        except OSError as error:
            raise self._died(str(error)) from None
        received = self._receive(timeout)
        if not isinstance(received, answer):
            raise self._died(f"answered {type(received).__name__} to {type(message).__name__}")
        return received

    def _receive(self, timeout: float) -> Any:
        assert self._connection is not None
        try:
            if not self._connection.poll(timeout):
                raise self._died(f"did not answer for {timeout:.0f} s")
            return self._connection.recv()
        except (EOFError, OSError):
            raise self._died(None) from None

    def _died(self, reason: str | None) -> EngineDied:
        self.kill()
        code = self._process.returncode if self._process else None
        return EngineDied(f"engine on {self.device} (process {self.pid}): {reason or f'ended with code {code}'}")

    def kill(self) -> None:
        """End the process at once and reap it."""
        if self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection.close()
            self._connection = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self, timeout: float) -> None:
        """Close the socket, which tells the engine to end; kill it where it does not within ``timeout``."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout)
        self.kill()


def _environment() -> dict[str, str]:
    env = dict(os.environ)
    if (path := env.pop(LIBRARY_PATH, None)) is not None:
        env["LD_LIBRARY_PATH"] = path
    # OpenMP threads that spin on a shared CPU stall the engine for up to seconds.
    env.setdefault("GOMP_SPINCOUNT", "0")
    env["TOKENIZERS_PARALLELISM"] = "false"
    return env
