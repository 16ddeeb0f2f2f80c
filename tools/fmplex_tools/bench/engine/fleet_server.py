"""Where a fleet is made and served: its folder, the memory that the server takes, and the machine."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from fmplex_tools.bench.fair.arena import Arena

MEGA = 1e6


@contextmanager
def workplace() -> Iterator[Path]:
    """A temporary folder with ``repository/`` in it and room beside it."""
    with tempfile.TemporaryDirectory(prefix="fmplex-bench-") as folder:
        (Path(folder) / "repository").mkdir()
        (Path(folder) / "beside").mkdir()
        yield Path(folder)


def memory(made: Arena) -> dict[str, dict[str, float]]:
    """Bytes of the server's processes → ``rss`` and ``pss``.

    ``host``, ``server``, and ``engine``: all of them, with the process that they were forked from.
    """
    status = made.status()
    server, host = made.processes(status)
    engines = [pid for pid in (*status["engine_pids"], status["fork_server_pid"]) if pid is not None]
    roles = {"host": [host.pid], "engine": engines, "server": [server.pid]}
    found = {role: [psutil.Process(pid).memory_full_info() for pid in pids] for role, pids in roles.items()}
    return {
        role: {"rss": float(sum(one.rss for one in infos)), "pss": float(sum(one.pss for one in infos))}
        for role, infos in found.items()
    }


def machine(made: Arena) -> str:
    """The engine's device and the machine's memory, in words."""
    return f"{made.status()['cost_model']['device']}, {psutil.virtual_memory().total / 2**30:.0f} GiB of memory"
