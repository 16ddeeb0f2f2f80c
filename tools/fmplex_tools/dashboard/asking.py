"""Asks a fleet's controller for its status, in a process of its own: Ray ends the process that it loses its cluster in,
and the page is to go on."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import sys
from multiprocessing.connection import Connection
from typing import Any

from fmplex_backend.errors import FMplexError, Unavailable

_PATIENCE = 30.0
"""Seconds for an answer: longer than Ray takes to start a controller that has died."""
_CONNECT = 90.0
"""Likewise for the first one: Ray looks for its cluster for a minute before it gives up."""
_END = 5.0
_SPAWN = multiprocessing.get_context("spawn")


class FleetAsker:
    """The controller of fleet ``name`` in the Ray cluster at ``address``. Call it from one thread at a time."""

    def __init__(self, name: str, address: str) -> None:
        self._name, self._address = name, address
        self._process: multiprocessing.process.BaseProcess | None = None
        self._line: Connection | None = None
        self._answered = False

    def __call__(self) -> dict[str, Any]:
        """Its status. Raises `NotFound` where there is no such fleet, `Unavailable` where it does not answer."""
        if self._process is None or not self._process.is_alive():
            self._start()
        line = self._line
        if line is None:
            raise Unavailable("the page is being closed")
        patience = _PATIENCE if self._answered else _CONNECT
        try:
            line.send(None)
            if not line.poll(patience):
                who = f"the controller of {self._name!r} in the Ray cluster at {self._address!r}"
                raise Unavailable(f"{who} has not answered for {patience:.0f} s")
            answer = line.recv()
        except (EOFError, OSError):
            self.close()
            raise Unavailable(f"no Ray cluster at {self._address!r} any more; the page goes on asking") from None
        except FMplexError:
            self.close()
            raise
        if isinstance(answer, FMplexError):
            if isinstance(answer, Unavailable):
                self.close()  # the next attempt connects anew: the cluster may be another
            raise answer
        self._answered = True
        told: dict[str, Any] = answer
        return told

    def close(self) -> None:
        """End the process, which sees that its line is closed. May be called from another thread, too."""
        line, process, self._line, self._process = self._line, self._process, None, None
        self._answered = False
        if line is not None:
            line.close()
        if process is not None:
            process.join(_END)
            if process.is_alive():  # it waits for an answer, or Ray does not let it go
                process.kill()
                process.join()

    def _start(self) -> None:
        self.close()
        self._line, theirs = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=_answer, args=(theirs, self._name, self._address), daemon=True)
        self._process.start()
        theirs.close()


def _answer(line: Connection, name: str, address: str) -> None:
    """In the process: a status for everything that comes over ``line``, until its other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one that asks
    from fmplex_tools.fleet.actors import ControllerHandle, connect, disconnect

    with contextlib.redirect_stdout(sys.stderr), contextlib.suppress(EOFError, OSError):
        connected = False
        while True:
            line.recv()
            try:
                if not connected:
                    connect(address)
                    connected = True
                line.send(ControllerHandle.find(name).status())
            except FMplexError as error:
                line.send(type(error)(*error.args))
    with contextlib.redirect_stdout(sys.stderr):
        disconnect()
