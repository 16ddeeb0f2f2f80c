"""The process that CPU engines are forked from: ``python -m fmplex_backend.engine.fork_server FD SETTINGS``.

1. It has imported torch and holds the backbone before an engine is asked for: starting one, also in the place of one
   that died, takes tenths of a second instead of seconds, and all of them share one copy of the weights.
2. It computes nothing and has no threads when it forks: those of OpenMP would be missing in the forked process, and
   what any other one holds would stay locked there for ever (those by which transformers loads live on for a while).
3. FD is a socket to the host. Each packet asks for an engine: the device, and with it two descriptors, the engine's
   channel and a socket on which the host is told the process (its pidfd) and, when it has ended, its exit code.
4. It ends when the host closes that socket, by dying too; its engines end with it.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fmplex_backend.engine.process import die_with_parent, load_backbone, serve
from fmplex_backend.messages import PROCESS_NUMBER
from fmplex_backend.repository.config import FMSettings
from fmplex_backend.transport import Channel

if TYPE_CHECKING:
    from fmplex_backend.backbones.base import Backbone

ALONE_SECONDS = 10.0
"""Until threads that loading has started must have ended."""


@dataclass
class Child:
    """An engine that runs."""

    pid: int
    teller: socket.socket
    """Where the host hears of it."""


class ForkServer:
    """See the module."""

    def __init__(self, control: socket.socket, settings: FMSettings) -> None:
        self._control, self._settings = control, settings
        self._children: dict[int, Child] = {}
        """By pidfd."""

    def run(self, backbone: Callable[[], Backbone]) -> None:
        """Fork engines that take ``backbone`` until the host is gone."""
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd in self._children:
                    poll.unregister(fd)
                    self._reap(fd)
                    continue
                device, fds, _, _ = socket.recv_fds(self._control, 256, 2)
                if not device:
                    return
                poll.register(self._fork(device.decode(), fds[0], socket.socket(fileno=fds[1]), backbone))

    def _fork(self, device: str, channel: int, teller: socket.socket, backbone: Callable[[], Backbone]) -> int:
        started, parent = time.time(), os.getpid()
        if (pid := os.fork()) == 0:
            self._be_engine(device, channel, teller, backbone, started, parent)
        os.close(channel)
        pidfd = os.pidfd_open(pid)
        self._children[pidfd] = Child(pid, teller)
        with contextlib.suppress(OSError):  # the host has lost interest, and closes the channel too
            socket.send_fds(teller, [PROCESS_NUMBER.pack(pid)], [pidfd])
        return pidfd

    def _be_engine(
        self,
        device: str,
        channel: int,
        teller: socket.socket,
        backbone: Callable[[], Backbone],
        started: float,
        parent: int,
    ) -> None:
        code = 1
        try:
            die_with_parent(parent)
            for pidfd, child in self._children.items():
                os.close(pidfd)
                child.teller.close()
            teller.close()
            self._control.close()
            with Channel.adopt(channel) as connection:
                serve(connection, device, self._settings, backbone, started)
            code = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)  # what follows in this frame is the fork server's

    def _reap(self, pidfd: int) -> None:
        child = self._children.pop(pidfd)
        os.close(pidfd)
        _, status = os.waitpid(child.pid, 0)
        with child.teller as teller, contextlib.suppress(OSError):
            teller.send(PROCESS_NUMBER.pack(os.waitstatus_to_exitcode(status)))


def main() -> None:
    """Entry point."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the host ends us in order
    fd, text = sys.argv[1:]
    settings = FMSettings.model_validate_json(text)
    made = _load(settings)
    _wait_alone()
    gc.collect()
    gc.freeze()  # else the collector writes to every page that forked processes share
    with socket.socket(fileno=int(fd)) as control:
        ForkServer(control, settings).run(made)


def _wait_alone() -> None:
    end = time.monotonic() + ALONE_SECONDS
    while (threads := len(os.listdir("/proc/self/task"))) > 1:
        if time.monotonic() > end:
            print(f"fmplex: the fork server has {threads} threads that do not end; engines may hang", flush=True)
            return
        time.sleep(1e-3)


def _load(settings: FMSettings) -> Callable[[], Backbone]:
    """Gives the backbone to an engine, or raises in it what loading has raised here."""
    try:
        import torch

        # All that an engine imports.
        import fmplex_backend.engine.faults
        import fmplex_backend.engine.measuring
        import fmplex_backend.engine.serving  # noqa: F401

        torch.set_num_threads(1)
        backbone = load_backbone(settings, "cpu")
    except Exception as error:
        reason = error

        def fail() -> Backbone:
            raise reason

        return fail
    return lambda: backbone


if __name__ == "__main__":
    main()
