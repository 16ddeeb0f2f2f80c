"""The process of an engine on a GPU: ``python -m fmplex_backend.engine FD DEVICE SETTINGS``, started by the host.

FD is a socket to the host, SETTINGS the physical FM's settings as JSON. Ends when the host closes the socket, dies, or
interrupts it. Engines on the CPU are forked instead, see `fmplex_backend.engine.fork_server`.
"""

from __future__ import annotations

import signal
import sys
import time

from fmplex_backend.engine.process import die_with_parent, load_backbone, serve
from fmplex_backend.repository.config import FMSettings
from fmplex_backend.transport import Channel


def main() -> None:
    """Entry point."""
    started = time.time()
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the host ends us in order
    fd, device, text = sys.argv[1:]
    settings = FMSettings.model_validate_json(text)
    with Channel.adopt(int(fd)) as connection:
        serve(connection, device, settings, lambda: load_backbone(settings, device), started)


if __name__ == "__main__":
    main()
