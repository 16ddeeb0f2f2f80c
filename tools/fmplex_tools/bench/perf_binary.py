"""Finding or fetching the real perf_analyzer, without root.

The newest wheel of perf_analyzer needs glibc 2.38, newer than Debian 12 has. The one inside ``tritonclient==2.50.0``
runs there, with two libraries that a plain machine may not have: libb64 and CUDA's runtime (which it loads even where
there is no GPU). The machine's own are used where it has them; else copies that lie in packages are linked into
``perf_analyzer/lib`` of FMplex's cache.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.progress import Progress

from fmplex_backend.backbones.source import cache_dir
from fmplex_backend.errors import FMplexError, NotFound
from fmplex_tools.packages import fetch_package

VERSION = "2.50.0"
WHEEL_SHA256 = "421fbb69ae6ab8cdb2c35b82134fcef2fe11e7af7718b1fcbc53335ab9bfe889"
PLATFORM = "manylinux1_x86_64"
CUDA_PACKAGE = ("nvidia-cuda-runtime-cu12", "12.6.77")
DEBIAN_PACKAGE = "libb64-0d"

_MISSING = re.compile(r"error while loading shared libraries: (\S+): cannot open shared object file")


@dataclass(frozen=True)
class PerfAnalyzer:
    """A perf_analyzer that starts."""

    path: Path
    library_path: Path | None = None
    """Folder to put on ``LD_LIBRARY_PATH``."""

    def environment(self) -> dict[str, str]:
        """The environment to start it with."""
        if self.library_path is None:
            return dict(os.environ)
        inherited = os.environ.get("LD_LIBRARY_PATH")
        return os.environ | {"LD_LIBRARY_PATH": f"{self.library_path}{':' + inherited if inherited else ''}"}


def perf_analyzer(progress: Progress | None = None) -> PerfAnalyzer:
    """The perf_analyzer on PATH where it starts, else the one in the cache, fetched first if need be.

    Raises `NotFound` where a library cannot be had, naming it and how to install it; `FMplexError` where it does not
    start for another reason; what `fetch_package` raises.
    """
    if on_path := shutil.which("perf_analyzer"):
        found = PerfAnalyzer(Path(on_path))
        if _start(found) is None:
            return found
    if (machine := platform.machine()) != "x86_64" or platform.system() != "Linux":
        raise NotFound(f"perf_analyzer: there is none for {platform.system()} {machine}; put one on PATH")
    home = cache_dir() / "perf_analyzer"
    found = PerfAnalyzer(home / "perf_analyzer", home / "lib")
    if not found.path.is_file():
        package = fetch_package("tritonclient", VERSION, sha256=WHEEL_SHA256, platform=PLATFORM, progress=progress)
        _install(package / f"tritonclient-{VERSION}.data" / "data" / "bin" / "perf_analyzer", found.path)
    problem: str | None = ""
    for _ in range(8):  # each round provides one library that it said is missing
        problem = _start(found)
        if problem is None:
            return found
        missing = _MISSING.search(problem)
        if missing is None:
            raise FMplexError(f"{found.path} does not start: {problem.strip()[:500]}")
        _provide(missing[1], home / "lib", progress)
    raise FMplexError(f"{found.path} does not start: {problem}")


def _start(binary: PerfAnalyzer) -> str | None:
    """None where it starts, else what it printed."""
    try:
        tried = subprocess.run(
            [binary.path, "--version"],
            env=binary.environment(),
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return None if tried.returncode == 0 else f"{tried.stdout}{tried.stderr}" or f"exit code {tried.returncode}"


def _install(source: Path, target: Path) -> None:
    """Copy a program into place whole, executable."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".perf_analyzer-", delete=False) as scratch:
        try:
            with source.open("rb") as file:
                shutil.copyfileobj(file, scratch)
            scratch.close()
            os.chmod(scratch.name, 0o755)
            os.replace(scratch.name, target)
        except BaseException:
            os.unlink(scratch.name)
            raise


def _provide(library: str, folder: Path, progress: Progress | None) -> None:
    """Link ``library`` into ``folder`` from the first place that has it. Raises `NotFound`."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in _sources(library, folder.parent, progress):
        link = folder / library
        if link.is_symlink() or link.exists():
            link.unlink()  # an earlier link that did not help, e.g. into a virtual environment that is gone
        link.symlink_to(path.resolve())
        return
    remedy = f"install Debian's package {DEBIAN_PACKAGE}" if library.startswith("libb64") else "install it"
    raise NotFound(f"perf_analyzer needs {library}, which neither this machine nor a package it has carries; {remedy}")


def _sources(library: str, home: Path, progress: Progress | None) -> Iterator[Path]:
    """Files that may stand for ``library``, nearest first."""
    yield from _bundled(library)
    if library.startswith("libcudart.so"):
        name, version = CUDA_PACKAGE
        package = fetch_package(name, version, platform="x86_64", progress=progress)
        yield from sorted(package.rglob(f"{library}*"))
    if library.startswith("libb64.so"):
        yield from _from_debian(library, home / "debian")


def _bundled(library: str) -> Iterator[Path]:
    """The embedded server's package carries both libraries, with a hash in their names: libb64-98cb6333.so.0d."""
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        return
    stem, _, version = library.partition(".so")
    yield from sorted((Path(spec.origin).parent.parent / "nvidia_pytriton.libs").glob(f"{stem}-*.so{version}*"))


def _from_debian(library: str, folder: Path) -> Iterator[Path]:
    """Download Debian's package and take it apart, as any user may; nothing is installed."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    try:
        _run(["apt-get", "download", DEBIAN_PACKAGE], folder)
        for package in folder.glob("*.deb"):
            _run(["dpkg-deb", "-x", str(package), str(folder / "root")], folder)
    except (subprocess.SubprocessError, OSError):
        return  # the caller's message says what to install
    yield from sorted((folder / "root").rglob(f"{library}*"))


def _run(command: list[str], folder: Path) -> None:
    subprocess.run(command, cwd=folder, capture_output=True, timeout=120, check=True, stdin=subprocess.DEVNULL)
