"""Putting a vFM into the repository: whole or not at all.

1. Everything is made in a staging folder *beside* the repository, ``.<name>.staging/``: Triton in poll mode takes any
   folder inside the repository for a model, dot-folders included, so nothing unfinished may lie there.
2. One ``rename`` puts it in place, which is atomic on one file system; two file systems are refused.
3. The choice of a port and that rename happen under one file lock, so that no two vFMs get the same port.
4. A process that is killed leaves its staging folder; the next one to publish clears it, told by a lock it no longer
   holds.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tritonclient.grpc.model_config_pb2 import ModelConfig

from fmplex_backend.errors import InvalidInput, NotFound, Refused
from fmplex_backend.owned_folder import OwnedFolder
from fmplex_backend.repository.artifact import Artifact
from fmplex_backend.repository.config import BACKEND, CONFIG_FILE, ensemble_config, write_config
from fmplex_backend.repository.layout import lowest_free_port, socket_dims, sockets_of, versions

FM_BATCH_ROWS = 64
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


def check_name(name: str) -> None:
    """Raise `InvalidInput` for a name that is no folder name or no part of a URL."""
    if not _NAME.fullmatch(name):
        raise InvalidInput(f"vFM name {name!r}: use letters, digits, '_', '-' and '.', starting with a letter or digit")


def check_free(repository: Path, name: str) -> None:
    """Raise `InvalidInput` where a model of that name is in the repository already."""
    if (repository / name).exists():
        raise InvalidInput(
            f"{name!r} is in {repository} already; `fmplex task train {name}` makes a new version of it, "
            f"`fmplex task remove {name}` removes it"
        )


def staging_root(repository: Path) -> Path:
    """Where things are made before they are published: beside the repository, on its file system."""
    real = repository.resolve()
    return real.parent / f".{real.name}.staging"


@contextmanager
def staged(repository: Path) -> Iterator[Path]:
    """A fresh staging folder, gone at the end whatever happens. Raises `InvalidInput` across file systems."""
    if not repository.is_dir():
        raise NotFound(f"no model repository at {repository}; `fmplex demo build` makes one")
    root = staging_root(repository)
    try:
        root.mkdir(exist_ok=True)
    except OSError as error:
        raise InvalidInput(
            f"cannot write beside the repository ({error.strerror}: {root}); versions are made there and moved in, "
            "so its parent folder must be writable"
        ) from error
    if root.stat().st_dev != repository.stat().st_dev:
        raise InvalidInput(
            f"{repository} and {root} are on different file systems, so nothing can be moved in at once; "
            "mount the repository's parent folder instead of the repository itself"
        )
    owned = OwnedFolder(root, "staged")
    try:
        yield owned.path
    finally:
        owned.close()


@contextmanager
def repository_lock(repository: Path) -> Iterator[None]:
    """Held while ports are chosen and models put in place or taken out; waits for whoever holds it."""
    with (staging_root(repository) / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def write_fm(repository: Path, fm: str, backbone: str, comment: str) -> None:
    """A new physical FM in a repository that nobody serves yet, with nothing set but its backbone."""
    config = ModelConfig(backend=BACKEND, max_batch_size=FM_BATCH_ROWS)
    config.parameters["backbone"].string_value = backbone
    (repository / fm / "1").mkdir(parents=True)
    write_config(repository / fm / CONFIG_FILE, config, comment)


def vfm_ensemble(
    fm: str, port: int, artifact: Artifact, width: int, max_batch_size: int, parameters: dict[str, str]
) -> ModelConfig:
    """The ensemble of one vFM: every output of its kind, and ``info``."""
    sockets = {name: (port, socket) for name, socket in sockets_of(artifact.kind, artifact.pooling).items()}
    sockets["info"] = (port, "info")
    shapes = socket_dims(artifact.kind, artifact.pooling, width)
    dims = {name: shapes[socket] for name, (_, socket) in sockets.items()}
    inputs, size = artifact.encoder.tensors, max_batch_size
    return ensemble_config(fm, sockets, dims, inputs=inputs, max_batch_size=size, parameters=parameters)


def publish_vfm(
    repository: Path,
    name: str,
    fm: str,
    ports: int,
    version: Path,
    artifact: Artifact,
    width: int,
    *,
    max_batch_size: int,
    parameters: dict[str, str],
) -> int:
    """Move the staged ``version`` in as version 1 of the new vFM ``name``; the port that it got."""
    folder = version.parent / f"{name}.model"
    folder.mkdir()
    version.rename(folder / "1")
    with repository_lock(repository):
        check_free(repository, name)
        port = lowest_free_port(repository, fm, ports)
        config = vfm_ensemble(fm, port, artifact, width, max_batch_size, parameters)
        write_config(folder / CONFIG_FILE, config, f"vFM {name}: {artifact.kind} on {fm}, port {port}.")
        _sync(folder)
        os.rename(folder, repository / name)
    return port


def publish_version(repository: Path, name: str, version: Path) -> int:
    """Move the staged ``version`` in as the next version of the vFM ``name``; its number."""
    with repository_lock(repository):
        target = repository / name
        if not target.is_dir():
            raise NotFound(f"vFM {name!r} was removed from {repository} meanwhile")
        number = max(versions(target), default=0) + 1
        _sync(version)
        os.rename(version, target / str(number))
    return number


def publish_bundle(repository: Path, name: str, config: ModelConfig, comment: str) -> None:
    """Put an ensemble without an artifact of its own in place."""
    with staged(repository) as scratch:
        folder = scratch / f"{name}.model"
        (folder / "1").mkdir(parents=True)  # Triton wants a version folder, if an empty one
        write_config(folder / CONFIG_FILE, config, comment)
        with repository_lock(repository):
            check_free(repository, name)
            _sync(folder)
            os.rename(folder, repository / name)


def replace_config(repository: Path, name: str, config: ModelConfig) -> None:
    """Put an edited ``config.pbtxt`` in the old one's place at once, its leading comment kept."""
    path = repository / name / CONFIG_FILE
    lead = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lead.append(line.removeprefix("#").strip())
    with staged(repository) as scratch:
        write_config(scratch / CONFIG_FILE, config, "\n".join(lead))
        _sync(scratch)
        os.replace(scratch / CONFIG_FILE, path)


def take_out(repository: Path, name: str) -> None:
    """Remove a model: renamed out of the repository at once, then deleted."""
    with staged(repository) as scratch, repository_lock(repository):
        try:
            os.rename(repository / name, scratch / "removed")
        except FileNotFoundError:
            raise NotFound(f"no vFM {name!r} in {repository}") from None
        except OSError as error:
            raise Refused(f"{name!r} cannot be moved out of {repository}: {error.strerror}") from error


def _sync(folder: Path) -> None:
    """Files reach the disk before the rename does: a crash leaves the old state or the new."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
