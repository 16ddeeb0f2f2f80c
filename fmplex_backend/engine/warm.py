"""Python that has imported torch before there is a host: ``python -m fmplex_backend.engine.warm FD``.

1. `fmplex serve` keeps one beside its tritonserver. A host's fork server that is forked from it has only the backbone
   to load, after a server died as well as beside tritonserver's own first start.
2. FD is a socket that listens. A host connects and sends a packet: the folder of its Python and the physical FM's
   settings, and with it three descriptors: the fork server's control socket, and the host's standard output and error.
   On the connection it hears of the process (see `forker`); nothing where its Python is another one.
3. It ends with who started it. Fork servers end with their hosts.
"""

from __future__ import annotations

import os
import signal
import socket
import sys

from fmplex_backend.engine.fork_server import fork_engines, import_everything
from fmplex_backend.engine.forker import Forker, Order
from fmplex_backend.engine.process import die_with_parent
from fmplex_backend.repository.config import FMSettings

PACKET_BYTES = 64 << 10
PATIENCE = 1.0
"""Seconds for a host that has connected to send its packet."""


def main() -> None:
    """Entry point."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; who started us ends us
    import_everything()
    with socket.socket(fileno=int(sys.argv[1])) as listener:
        Forker(listener, lambda: _take(listener)).run()


def _take(listener: socket.socket) -> Order | None:
    connection, _ = listener.accept()
    connection.settimeout(PATIENCE)
    try:
        packet, fds, _, _ = socket.recv_fds(connection, PACKET_BYTES, 3)
    except OSError:
        packet, fds = b"", []
    prefix, _, settings = packet.decode().partition("\n")
    if prefix != sys.prefix:
        for fd in fds:
            os.close(fd)
        connection.close()
        return None

    def fork_server() -> None:
        control, *outputs = fds
        for standard, fd in zip((1, 2), outputs, strict=True):
            os.dup2(fd, standard)
            os.close(fd)
        fork_engines(socket.socket(fileno=control), FMSettings.model_validate_json(settings))

    return Order(connection, fds, fork_server)


if __name__ == "__main__":
    main()
