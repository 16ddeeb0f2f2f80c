"""Processor seconds of everything that takes part in serving: tritonserver, host, engines, load processes."""

from __future__ import annotations

from collections.abc import Mapping

import psutil

from fmplex_tools.bench.fair.arena import Arena

Spent = dict[str, float]
"""Role → processor seconds, user and system: ``engine``, ``host``, ``tritonserver``, ``client``."""
GENERATOR = "fmplex_tools.bench.fair.generator"


def spent(made: Arena) -> Spent:
    """What each role has taken so far."""
    status = made.status()
    server, host = made.processes(status)
    clients = [child for child in psutil.Process().children() if GENERATOR in child.cmdline()]
    roles = {
        "engine": [psutil.Process(pid) for pid in status["engine_pids"]],
        "host": [host],
        "tritonserver": [server],
        "client": clients,
    }
    return {role: sum(_seconds(process) for process in processes) for role, processes in roles.items()}


def _seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def used_between(before: Mapping[str, float], after: Mapping[str, float], rows: int) -> Spent:
    """Processor seconds per row of each role; ``rows`` were answered meanwhile."""
    return {role: (after[role] - before[role]) / max(1, rows) for role in after}
