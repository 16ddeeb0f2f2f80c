"""A process with all that it has started, and the end of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import psutil


def tree(pid: int) -> list[psutil.Process]:
    """The process, then all below it; nothing where it is gone."""
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    return []


def kill(processes: Iterable[psutil.Process], seconds: float = 5.0) -> None:
    """End them at once, in this order, and wait for as long until they are gone."""
    ended = list(processes)
    for process in ended:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(ended, timeout=seconds)
