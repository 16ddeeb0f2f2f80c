"""Memory that a process has taken for itself, whatever else runs on the machine."""

from __future__ import annotations

from pathlib import Path

_OWN = ("Pss_Anon:", "Pss_Shmem:")


def own_bytes(pid: int) -> int:
    """Anonymous and shared memory of a process, what several share being divided among them.

    Pages of files, above all of libraries, are left out: they are counted to whoever maps them, so that a process would
    grow by tens of MB when another one ends that has the same libraries. Raises `OSError` where there is no such
    process.
    """
    total = 0
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines():
        if line.startswith(_OWN):
            total += int(line.split()[1]) * 1024
    return total
