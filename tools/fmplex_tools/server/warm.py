"""Keeps Python with torch imported beside the server: hosts start seconds sooner (`fmplex_backend.engine.warm`)."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fmplex_backend.errors import FMplexError
from fmplex_backend.host.engine_environment import engine_environment
from fmplex_backend.repository.config import fm_settings
from fmplex_backend.repository.layout import physical_fms

BACKLOG = 64
"""Hosts that may wait while it imports."""


@contextlib.contextmanager
def warm_python(repository: Path) -> Iterator[Path | None]:
    """The socket at which hosts ask it; None where no physical FM has engines on the CPU, which alone are forked."""
    if not any(_computes_on_cpu(repository / fm) for fm in physical_fms(repository)):
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="fmplex-warm-") as folder:  # for this user alone
        path = Path(folder) / "socket"
        # Closed here once it is the process's: where that dies, hosts are refused instead of waiting for nobody.
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(str(path))
            listener.listen(BACKLOG)
            process = subprocess.Popen(
                [sys.executable, "-m", "fmplex_backend.engine.warm", str(listener.fileno())],
                pass_fds=[listener.fileno()],
                stdin=subprocess.DEVNULL,
                env=engine_environment(),
                start_new_session=True,  # Ctrl-C is ours to handle
            )
        try:
            yield path
        finally:
            process.kill()
            process.wait()


def _computes_on_cpu(folder: Path) -> bool:
    try:
        return "cpu" in fm_settings(folder).engines.split(",")
    except FMplexError:  # it is refused when it loads, with this error
        return False
