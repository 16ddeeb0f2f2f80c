"""The host's end of one engine: start the process, send a message, take the answer, notice its death."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from typing import Any, TypeVar

from fmplex_backend.errors import EngineFailure
from fmplex_backend.host.engine_environment import engine_environment
from fmplex_backend.host.forks import Forked, ForkServer
from fmplex_backend.messages import EngineFailed, EngineReady
from fmplex_backend.repository.config import FMSettings
from fmplex_backend.transport import Channel

END_SECONDS = 1.0
"""Until an engine that has closed its socket has surely ended."""

_Answer = TypeVar("_Answer")


class EngineDied(EngineFailure):
    """The engine's process ended, hung or closed its socket before it answered."""


class EngineProcess:
    """One engine on one device. Start it from a thread that outlives it (see `die_with_parent`)."""

    def __init__(self, device: str, settings: FMSettings, fork_server: ForkServer) -> None:
        """``fork_server`` starts engines on the CPU; a GPU must not have been touched before a fork."""
        self.device = device
        self._settings = settings
        self._fork_server = fork_server
        self._process: subprocess.Popen[bytes] | Forked | None = None
        self._channel: Channel | None = None

    @property
    def pid(self) -> int | None:
        """Process id, None before the start."""
        return self._process.pid if self._process else None

    def start(self, timeout: float) -> EngineReady:
        """Start the process and wait until it holds the backbone. Raises `EngineFailure` with the engine's reason."""
        self.close()
        self._channel, theirs = Channel.pair()
        with theirs:
            self._process = self._launch(theirs.fileno(), timeout)
        try:
            answer = self.receive(timeout)
        except EngineDied:
            self.kill()
            raise
        if not isinstance(answer, EngineReady):
            self.kill()
            what = answer.error if isinstance(answer, EngineFailed) else f"was not ready within {timeout:.0f} s"
            raise EngineFailure(f"engine on {self.device}: {what}")
        return answer

    def _launch(self, fd: int, timeout: float) -> subprocess.Popen[bytes] | Forked:
        if self.device == "cpu":
            return self._fork_server.fork(self.device, fd, timeout)
        return subprocess.Popen(
            [sys.executable, "-m", "fmplex_backend.engine", str(fd), self.device, self._settings.model_dump_json()],
            pass_fds=[fd],
            stdin=subprocess.DEVNULL,
            env=engine_environment(),
        )

    def send(self, message: object) -> None:
        """Send ``message``. Raises `EngineDied`."""
        if self._channel is None:
            raise EngineDied(f"engine on {self.device}: is not running")
        try:
            self._channel.send(message)
        except OSError as error:
            raise self._died(str(error)) from None

    def receive(self, timeout: float) -> Any:
        """The next answer, None where there is none in time. Raises `EngineDied`. From another thread than `send`."""
        channel = self._channel
        if channel is None:
            raise EngineDied(f"engine on {self.device}: is not running")
        try:
            return channel.recv() if channel.poll(timeout) else None
        except (EOFError, OSError):
            raise self._died(None) from None
        except Exception as error:  # whatever unpickling may raise
            raise self._died(f"sent what is no message: {type(error).__name__}: {error}") from None

    def call(self, message: object, answer: type[_Answer], timeout: float) -> _Answer:
        """Send ``message``, return its answer, while no other thread receives. Raises `EngineDied`."""
        self.send(message)
        received = self.receive(timeout)
        if not isinstance(received, answer):
            what = "did not answer" if received is None else f"answered {type(received).__name__} to"
            raise self._died(f"{what} {type(message).__name__}")
        return received

    def _died(self, reason: str | None) -> EngineDied:
        if reason is None and self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(END_SECONDS)
            reason = f"ended with code {self._process.poll()}"
        return EngineDied(f"engine on {self.device} (process {self.pid}): {reason}")

    def kill(self) -> None:
        """End the process at once and reap it; who receives finds the engine dead."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self, timeout: float) -> None:
        """Tell the engine that nothing more comes, so that it ends; kill it where it does not within ``timeout``."""
        if self._channel is not None:
            self._channel.finish()
        if self._process is not None and timeout:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout)
        self.kill()

    def close(self) -> None:
        """Free what is left of the connection, once nobody receives any more."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
