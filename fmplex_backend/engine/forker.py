"""Forks a process for each packet that asks for one, and tells who asked how it goes on and ends.

Whoever asks sends a `socket` with the packet: on it he is told the process (its number, with it its pidfd) and, when it
has ended, its exit code. The process that forks computes nothing and has no other thread: those of OpenMP would be
missing in the forked process, and what any other one holds would stay locked there for ever.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from fmplex_backend.messages import PROCESS_NUMBER

ALONE_SECONDS = 10.0
"""Until threads that an import or a load has started must have ended."""


@dataclass
class Order:
    """A process that is asked for."""

    teller: socket.socket
    """Where who asked hears of it."""
    fds: list[int]
    """Descriptors for it; the forking process closes its own."""
    work: Callable[[], None]
    """What it does, until its end."""


@dataclass
class _Child:
    pid: int
    teller: socket.socket


class Forker:
    """See the module."""

    def __init__(self, source: socket.socket, take: Callable[[], Order | None]) -> None:
        """``take`` reads ``source`` when it can be: what to fork, None for nothing; EOFError where all is done."""
        self._source, self._take = source, take
        self._children: dict[int, _Child] = {}
        """By pidfd."""

    def run(self) -> None:
        """Fork until there is nothing more to take."""
        _wait_alone()
        gc.collect()
        gc.freeze()  # else the collector writes to every page that forked processes share
        poll = select.poll()
        poll.register(self._source, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd in self._children:
                    poll.unregister(fd)
                    self._reap(fd)
                    continue
                try:
                    order = self._take()
                except EOFError:
                    return
                if order is not None:
                    poll.register(self._fork(order))

    def _fork(self, order: Order) -> int:
        if (pid := os.fork()) == 0:
            self._be_child(order)
        for fd in order.fds:
            os.close(fd)
        pidfd = os.pidfd_open(pid)
        self._children[pidfd] = _Child(pid, order.teller)
        with contextlib.suppress(OSError):  # who asked has lost interest
            socket.send_fds(order.teller, [PROCESS_NUMBER.pack(pid)], [pidfd])
        return pidfd

    def _be_child(self, order: Order) -> None:
        code = 1
        try:
            for pidfd, child in self._children.items():
                os.close(pidfd)
                child.teller.close()
            order.teller.close()
            self._source.close()
            order.work()
            code = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)  # what follows in this frame is the forking process's

    def _reap(self, pidfd: int) -> None:
        child = self._children.pop(pidfd)
        os.close(pidfd)
        _, status = os.waitpid(child.pid, 0)
        with child.teller as teller, contextlib.suppress(OSError):
            teller.send(PROCESS_NUMBER.pack(os.waitstatus_to_exitcode(status)))


def _wait_alone() -> None:
    end = time.monotonic() + ALONE_SECONDS
    while (threads := len(os.listdir("/proc/self/task"))) > 1:
        if time.monotonic() > end:
            print(f"fmplex: a process that forks has {threads} threads that do not end; forks may hang", flush=True)
            return
        time.sleep(1e-3)
