"""Looking at a repository again and again, cheaply: what has changed is told by times, sizes and inodes alone.

A look is *quick* (the vFM's own folder, whose time changes when a version comes or goes) or *thorough* (every file of
the version too, also one that was edited in place).
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from fmplex_backend.errors import NotFound
from fmplex_backend.repository.config import CONFIG_FILE, VfmConfig
from fmplex_backend.repository.layout import version_to_serve

Stamp = tuple[int, int, int]
"""Time, size and inode; another one when a file was written or replaced."""


def stamp(path: str) -> Stamp | None:
    """The stamp of a file or folder, links followed; None where there is none."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return (stat.st_mtime_ns, stat.st_size, stat.st_ino)


def models(repository: Path) -> dict[str, Stamp]:
    """Name of every model → the stamp of its ``config.pbtxt``, in name order; `layout.model_dirs` for many looks.

    Raises `NotFound` where there is no such repository.
    """
    try:
        with os.scandir(repository) as entries:
            names = sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(f"no model repository at {repository}; `fmplex demo build` makes one") from None
    root = os.fspath(repository)
    found = ((name, stamp(f"{root}/{name}/{CONFIG_FILE}")) for name in names)
    return {name: seen for name, seen in found if seen is not None}


def signature(folder: Path) -> str:
    """A digest of names, sizes and times of every file under ``folder``: changes when anything in it does."""
    lines: list[str] = []
    waiting = [os.fspath(folder)]
    while waiting:
        parent = waiting.pop()
        try:
            with os.scandir(parent) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    else:
                        lines.append(f"{entry.path}:{stamp(entry.path)}")
        except OSError:
            lines.append(f"{parent}?")
    return hashlib.blake2b("\n".join(sorted(lines)).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


class VersionWatch:
    """The version of one vFM that is to be served, and its signature."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: tuple[Stamp | None, int | None] | None = None
        self._found: tuple[int | None, str | None] = (None, None)

    def look(self, config: VfmConfig, *, thorough: bool) -> tuple[int | None, str | None]:
        """The version that ``config`` serves out of the vFM's folder, and its signature; None where there is none."""
        seen = (stamp(os.fspath(self._folder)), config.pinned_version)  # first: what comes later, the next look sees
        if thorough or seen != self._seen:
            version = version_to_serve(config, self._folder)
            content = None if version is None else signature(self._folder / str(version))
            self._seen, self._found = seen, (version, content)
        return self._found
