"""Versions of vFMs in a store, by what they hold: a folder here, S3, GCS or whatever `fsspec` reads.

A version's hash is that of its manifest, which names every file with its own hash. So what comes out of a store is what
went in, or it is refused: nothing is believed of a store, a network or a cache.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fmplex_backend.backbones.source import sha256_of
from fmplex_backend.errors import NotFound, Refused, Unavailable
from fmplex_tools.files import put_in_place

MANIFEST = "manifest.json"
MOST_FILES, MOST_BYTES = 64, 8 << 30
"""Of one version."""
_PIECE = 1 << 20


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    size: int = Field(ge=0, le=MOST_BYTES)


class Manifest(BaseModel):
    """What a version holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    files: dict[str, _File] = Field(min_length=1, max_length=MOST_FILES)
    """Path inside the version → what it must be."""

    def text(self) -> str:
        """As it is stored and hashed."""
        return json.dumps(self.model_dump(), sort_keys=True, separators=(",", ":"))

    @property
    def hash(self) -> str:
        """The version's."""
        return hashlib.sha256(self.text().encode()).hexdigest()


def manifest_of(version: Path) -> Manifest:
    """Of a version's folder. Raises `NotFound`, or `Refused` where it holds what is no plain file."""
    if not version.is_dir():
        raise NotFound(f"no version {version}")
    files: dict[str, _File] = {}
    for path in sorted(version.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise Refused(f"{path}: is no plain file; versions hold nothing else")
        if path.is_file():
            files[path.relative_to(version).as_posix()] = _File(sha256=sha256_of(path), size=path.stat().st_size)
    try:
        return Manifest(files=files)
    except ValidationError as error:
        raise Refused(f"{version}: {error.errors()[0]['msg']}") from None


def push(version: Path, store: str) -> str:
    """Put a version into ``store`` (a folder or a URL such as ``s3://bucket/fmplex``); its hash.

    What is there already is left alone. Raises `NotFound`, `Refused` or `Unavailable`.
    """
    manifest = manifest_of(version)
    files, base = opened(store)
    place = f"{base}/{manifest.hash}"
    try:
        if files.exists(f"{place}/{MANIFEST}"):
            return manifest.hash
        for name in manifest.files:
            files.makedirs(str(PurePosixPath(place, "files", name).parent), exist_ok=True)
            files.put_file(str(version / name), f"{place}/files/{name}")
        files.pipe_file(f"{place}/{MANIFEST}", manifest.text().encode())  # last: with it, all is there
    except OSError as error:
        raise Unavailable(f"store {store}: cannot be written: {error}") from None
    return manifest.hash


def fetch(digest: str, store: str, target: Path) -> None:
    """Put the version with the hash ``digest`` out of ``store`` at ``target``, whole or not at all.

    Raises `NotFound` where the store lacks it, `Refused` where what it has is something else, `Unavailable` where it
    cannot be read.
    """
    files, base = opened(store)
    place = f"{base}/{digest}"
    try:
        text = files.cat_file(f"{place}/{MANIFEST}")
    except FileNotFoundError:
        raise NotFound(f"store {store} has no version {digest}") from None
    except OSError as error:
        raise Unavailable(f"store {store}: cannot be read: {error}") from None
    manifest = _checked(text, digest, store)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=target.parent) as scratch:
        made = Path(scratch) / "version"
        for name, wanted in manifest.files.items():
            path = made / name
            path.parent.mkdir(parents=True, exist_ok=True)
            _copy(files, f"{place}/files/{name}", path, wanted.size, store)
            if path.stat().st_size != wanted.size or sha256_of(path) != wanted.sha256:
                raise Refused(f"store {store}: {name} of version {digest} is not what its manifest says; not used")
        put_in_place(made, target)


def _checked(text: bytes, digest: str, store: str) -> Manifest:
    """The manifest, if it is the one of ``digest`` and names nothing outside its version."""
    if hashlib.sha256(text).hexdigest() != digest:
        raise Refused(f"store {store}: the manifest of version {digest} has another hash; not used")
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        raise Refused(f"store {store}: the manifest of version {digest} is none: {error.errors()[0]['msg']}") from None
    for name in manifest.files:
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts or "\\" in name:
            raise Refused(f"store {store}: version {digest} names {name!r}, which is outside of it; not used")
    return manifest


def _copy(files: Any, source: str, path: Path, size: int, store: str) -> None:
    """At most a byte more than ``size``: a store cannot fill the disk."""
    try:
        with files.open(source, "rb") as stream, path.open("wb") as made:
            left = size + 1
            while left and (piece := stream.read(min(_PIECE, left))):
                made.write(piece)
                left -= len(piece)
    except FileNotFoundError:
        raise Refused(f"store {store}: {source} is missing") from None
    except OSError as error:
        raise Unavailable(f"store {store}: cannot be read: {error}") from None


def opened(store: str) -> tuple[Any, str]:
    """The file system of ``store``, and its path there."""
    try:
        files, base = fsspec.core.url_to_fs(store)
    except (ValueError, ImportError) as error:
        raise NotFound(f"store {store!r} cannot be used: {error}") from None
    return files, base.rstrip("/")
