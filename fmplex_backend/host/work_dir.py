"""A private folder for packed generations that lasts as long as its owner, and no longer.

It lies in FMplex's cache and not in ``/tmp``, where a cleaner may take files that an engine needs days later. A folder
whose owner was killed is found by its lock, which the kernel has let go, and removed by the next owner.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

from fmplex_backend.backbones.source import cache_dir

_LOCK = "owner.lock"


class WorkDir:
    """See the module."""

    def __init__(self, name: str) -> None:
        """Make a folder named after ``name``; removes those of dead owners first."""
        root = cache_dir() / "run"
        root.mkdir(parents=True, exist_ok=True)
        _sweep(root)
        # Locked before it has its final name: a sweep elsewhere never sees it without its owner.
        fresh = Path(tempfile.mkdtemp(prefix=".new-", dir=root))
        self._lock = os.open(fresh / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.path = root / f"{name}-{fresh.name.removeprefix('.new-')}"
        fresh.rename(self.path)

    def close(self) -> None:
        """Remove the folder and all in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def _sweep(root: Path) -> None:
    for folder in root.iterdir():
        if folder.name.startswith(".new-"):
            continue
        try:
            lock = os.open(folder / _LOCK, os.O_RDWR)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue  # its owner lives
        else:
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)
