"""What a server's processes take, before and after."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from fmplex_tools.bench.engine.fleet_server import MEGA
from fmplex_tools.bench.fair.arena import Arena
from fmplex_tools.bench.fair.bench import Figure
from fmplex_tools.bench.faults.own_memory import own_bytes

LEAK_GOAL = 200.0
"""Bytes a request of what takes requests in; if anything were kept of each of them it would be more."""
ROLES = {"tritonserver": "tritonserver", "triton_python_backend_stub": "host"}
"""A process's name → what it is; the others are engines and what they were forked from."""
SLACK = 2
"""Threads and open files that may come and go."""


@dataclass(frozen=True)
class Footprint:
    """What the server's processes take."""

    memory: dict[str, int]
    """Process, by name and number → bytes that are its own, see `own_bytes`."""
    threads: int
    files: int
    shared: int
    """Files of shared memory that are mapped."""

    def by_role(self) -> Counter[str]:
        """Bytes of tritonserver, host and engines."""
        found: Counter[str] = Counter()
        for process, size in self.memory.items():
            found[ROLES.get(process.split()[0], "engines")] += size
        return found

    @classmethod
    def of(cls, made: Arena) -> Footprint:
        """Now."""
        server, _ = made.processes()
        tree = [server, *server.children(recursive=True)]
        maps = [Path(f"/proc/{one.pid}/maps").read_text() for one in tree]
        shared = {word for text in maps for word in text.split() if word.startswith("/dev/shm/")}
        return cls(
            {f"{one.name()} {one.pid}": own_bytes(one.pid) for one in tree},
            sum(one.num_threads() for one in tree),
            sum(one.num_fds() for one in tree),
            len(shared),
        )


def growth(part: str, before: Footprint, after: Footprint, counted: int) -> list[Figure]:
    """What ``counted`` requests left behind, as figures of ``part``."""
    figures = []
    was, now = before.by_role(), after.by_role()
    for role in was:
        more = now[role] - was[role]
        figures.append(Figure(part, f"memory of {role}", more / MEGA, f"MB of {was[role] / MEGA:.0f}"))
        if role in ROLES.values():
            each = more / max(1, counted)
            figures.append(Figure(part, "… for each request", each, "bytes", f"≤ {LEAK_GOAL:g}", each <= LEAK_GOAL))
    for name, old, new in (
        ("threads", before.threads, after.threads),
        ("open files", before.files, after.files),
        ("shared memory regions", before.shared, after.shared),
    ):
        figures.append(Figure(part, name, new - old, f"of {old}", f"≤ {SLACK}", new - old <= SLACK))
    return figures
