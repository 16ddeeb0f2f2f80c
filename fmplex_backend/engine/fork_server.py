"""The process that CPU engines are forked from: ``python -m fmplex_backend.engine.fork_server FD SETTINGS``.

1. It has imported torch and holds the backbone before an engine is asked for: starting one, also in the place of one
   that died, takes tenths of a second instead of seconds, and all of them share one copy of the weights.
2. FD is a socket to the host. Each packet asks for an engine: the device, and with it two descriptors, the engine's
   channel and the socket on which the host hears of the process (see `forker`).
3. It ends when the host closes that socket, by dying too; its engines end with it.

It may be forked itself, from a process that has imported torch before there is a host (see `warm`).
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from fmplex_backend.engine.forker import Forker, Order
from fmplex_backend.engine.process import compute_threads, die_with_parent, load_backbone, pack, serve
from fmplex_backend.repository.config import FMSettings
from fmplex_backend.transport import Channel

if TYPE_CHECKING:
    from fmplex_backend.backbones.base import Backbone


def fork_engines(control: socket.socket, settings: FMSettings) -> None:
    """Load the backbone, and fork an engine for each packet on ``control``, until its other end is closed."""
    backbone = _load(settings)
    parent = os.getpid()

    def take() -> Order:
        device, fds, _, _ = socket.recv_fds(control, 256, 2)
        if not device:
            raise EOFError
        channel, started = fds[0], time.time()

        def engine() -> None:
            die_with_parent(parent)
            with Channel.adopt(channel) as connection:
                serve(connection, device.decode(), settings, backbone, started)

        return Order(socket.socket(fileno=fds[1]), [channel], engine)

    with control:
        Forker(control, take).run()


def import_everything() -> None:
    """All that an engine imports: nearly all the time that its start takes. Raises what importing raises."""
    import torch

    import fmplex_backend.backbones.registry
    import fmplex_backend.backbones.text
    import fmplex_backend.engine.faults
    import fmplex_backend.engine.measuring
    import fmplex_backend.engine.serving  # noqa: F401

    torch.set_num_threads(1)


def _load(settings: FMSettings) -> Callable[[], Backbone]:
    """Gives the backbone to an engine, or raises in it what loading has raised here."""
    try:
        import_everything()
        backbone = load_backbone(settings, "cpu")
        if compute_threads(settings) == 1:  # as this process has one: all engines share what is packed
            pack(backbone, settings)
    except Exception as error:
        reason = error

        def fail() -> Backbone:
            raise reason

        return fail
    return lambda: backbone


def main() -> None:
    """Entry point."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the host ends us in order
    fd, text = sys.argv[1:]
    fork_engines(socket.socket(fileno=int(fd)), FMSettings.model_validate_json(text))


if __name__ == "__main__":
    main()
