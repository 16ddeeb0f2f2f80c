"""A folder that lasts as long as its owner, and no longer.

Its owner holds a lock on a file in it. A folder whose owner was killed is found by that lock, which the kernel has let
go, and removed by whoever makes the next one beside it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

_LOCK = ".alive"


class OwnedFolder:
    """See the module; ``path`` is the folder."""

    def __init__(self, root: Path, name: str) -> None:
        """Make a folder named after ``name`` in ``root``; removes those of dead owners first."""
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
