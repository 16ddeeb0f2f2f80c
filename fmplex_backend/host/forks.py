"""The host's end of the fork server: ask for an engine, know its process, hear how it ended."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable

from fmplex_backend.errors import EngineFailure
from fmplex_backend.host.engine_environment import WARM, engine_environment
from fmplex_backend.messages import PROCESS_NUMBER
from fmplex_backend.repository.config import FMSettings

UNKNOWN_CODE = -9
"""Exit code of an engine whose fork server died with it."""


class ForkServer:
    """The process of `fmplex_backend.engine.fork_server`; it is started with the first engine, and again if it dies."""

    def __init__(self, settings: FMSettings, log: Callable[[str], None]) -> None:
        """``log`` is told where it cannot be forked from Python that is warm already (see `engine.warm`)."""
        self._settings, self._log = settings, log
        self._process: subprocess.Popen[bytes] | Forked | None = None
        self._control: socket.socket | None = None
        self._lock = threading.Lock()

    @property
    def pid(self) -> int | None:
        """Process id, None while there is none."""
        return self._process.pid if self._process else None

    def fork(self, device: str, channel: int, timeout: float) -> Forked:
        """An engine on ``device`` with the descriptor ``channel``; the backbone is in memory when this returns.

        Raises `EngineFailure` where it does not come within ``timeout`` seconds.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, self._lock:
            try:
                self._ask(device, channel, theirs, timeout)
            except OSError:  # it has died since the last time
                self._end()
                self._ask(device, channel, theirs, timeout)
        forked = Forked(ours)
        if not forked.begun(timeout):
            forked.close()
            raise EngineFailure(f"engine on {device}: was not started within {timeout:.0f} s")
        return forked

    def _ask(self, device: str, channel: int, teller: socket.socket, timeout: float) -> None:
        if self._control is None:
            self._start(timeout)
        assert self._control is not None
        socket.send_fds(self._control, [device.encode()], [channel, teller.fileno()], socket.MSG_NOSIGNAL)

    def _start(self, timeout: float) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = self._from_warm(theirs.fileno(), timeout) or subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "fmplex_backend.engine.fork_server",
                    str(theirs.fileno()),
                    self._settings.model_dump_json(),
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=engine_environment(),
            )

    def _from_warm(self, control: int, timeout: float) -> Forked | None:
        """Forked from the process of `engine.warm`; None where there is none, or it does not do it."""
        if (path := os.environ.get(WARM)) is None:
            return None
        packet = f"{sys.prefix}\n{self._settings.model_dump_json()}".encode()
        teller = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            teller.connect(path)
            socket.send_fds(teller, [packet], [control, 1, 2], socket.MSG_NOSIGNAL)
        except OSError as error:
            teller.close()
            self._log(f"engine: Python that is warm cannot be had ({error.strerror}), torch is imported anew")
            return None
        forked = Forked(teller)
        if forked.begun(timeout) and forked.pid is not None:
            return forked
        forked.close()
        self._log("engine: Python that is warm has forked nothing, torch is imported anew")
        return None

    def close(self) -> None:
        """End it, and with it every engine that is left."""
        with self._lock:
            self._end()

    def _end(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class Forked:
    """An engine that was forked; to be used like a `subprocess.Popen`, by several threads."""

    def __init__(self, teller: socket.socket) -> None:
        self._teller = teller
        self._pidfd: int | None = None
        self._code: int | None = None
        self._lock = threading.Lock()
        self.pid: int | None = None

    def begun(self, timeout: float) -> bool:
        """Wait until there is a process; whether there is one, or never will be."""
        if not _readable(self._teller, timeout):
            return False
        data, fds, _, _ = socket.recv_fds(self._teller, PROCESS_NUMBER.size, 1)
        if data:
            (self.pid,) = PROCESS_NUMBER.unpack(data)
            self._pidfd = fds[0]
        else:
            self._ended(UNKNOWN_CODE)
        return True

    def poll(self) -> int | None:
        """The exit code, None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0.0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end. Raises `subprocess.TimeoutExpired`."""
        with self._lock:
            if self._code is None:
                if not _readable(self._teller, timeout):
                    raise subprocess.TimeoutExpired("engine", timeout or 0.0)
                data = self._teller.recv(PROCESS_NUMBER.size)
                self._ended(PROCESS_NUMBER.unpack(data)[0] if data else UNKNOWN_CODE)
            assert self._code is not None
            return self._code

    def kill(self) -> None:
        """SIGKILL, unless it has ended."""
        with self._lock, contextlib.suppress(ProcessLookupError):
            if self._pidfd is not None:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def _ended(self, code: int) -> None:
        self._code = code
        self.close()

    def close(self) -> None:
        """Free the descriptors."""
        self._teller.close()
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None


def _readable(sock: socket.socket, timeout: float | None) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(None if timeout is None else max(0.0, timeout) * 1e3))
