"""A version and a vFM from what was learnt: written to one side, checked by the server's own rules, put in place."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fmplex_backend.errors import FMplexError, Refused
from fmplex_backend.heads.projections import transformers_head
from fmplex_backend.repository.artifact import Artifact
from fmplex_backend.repository.config import FMSettings, Policy, read_config
from fmplex_backend.repository.packed import read_version
from fmplex_tools.tasks import publish
from fmplex_tools.tasks.artifact_writer import write_golden, write_version
from fmplex_tools.tasks.backbone import Backbone, load_backbone, read_settings
from fmplex_tools.tasks.evaluate import Score
from fmplex_tools.tasks.golden import make_golden
from fmplex_tools.tasks.heads import AnyHead
from fmplex_tools.tasks.signing import sign_version

MAX_BATCH_SIZE = 64

Write = Callable[[Path], None]
"""Writes a version, all but its golden rows and signature, into a folder that is not there yet."""


@dataclass(frozen=True)
class TaskResult:
    """What was made, and how good it is."""

    name: str
    version: int
    port: int | None
    """None for a new version: it keeps the vFM's port."""
    artifact: Artifact
    probe: Score | None
    """What the frozen backbone reaches with a head alone (an embedding: by itself)."""
    mean_absolute_error: float | None
    """Regression only, in the target's unit."""
    duplicates: int
    """Rows left out because their text came before, or is held out."""
    bytes_on_disk: int
    seconds: float


def check_new(repository: Path, name: str, parameters: Mapping[str, str]) -> None:
    """Raise `FMplexError` where no vFM ``name`` with this policy can be made; before anything is learnt."""
    publish.check_name(name)
    publish.check_free(repository, name)
    Policy.parse(dict(parameters), f"vFM {name!r}")


@dataclass(frozen=True)
class NewTask:
    """A vFM that is being made, where nobody has one of this name yet."""

    repository: Path
    name: str
    fm: str
    settings: FMSettings
    backbone: Backbone
    parameters: Mapping[str, str]
    sign_with: Ed25519PrivateKey | None
    begun: float

    @classmethod
    def begin(
        cls,
        repository: Path,
        name: str,
        fm: str,
        parameters: Mapping[str, str] | None = None,
        backbone: Backbone | None = None,
        sign_with: Ed25519PrivateKey | None = None,
    ) -> NewTask:
        """Check all that can be checked before anything is learnt. Raises `FMplexError`."""
        begun, parameters = time.monotonic(), dict(parameters or {})
        check_new(repository, name, parameters)
        settings = read_settings(repository, fm)
        backbone = backbone or load_backbone(repository, fm)
        return cls(repository, name, fm, settings, backbone, parameters, sign_with, begun)

    def publish(self, artifact: Artifact, head: AnyHead | None, rows: Sequence[Any]) -> TaskResult:
        """Put it into the repository; golden rows are of ``rows``."""
        port, size = publish_new(
            self.repository,
            self.name,
            self.fm,
            artifact,
            lambda version: write_version(version, artifact, head),
            backbone=self.backbone,
            settings=self.settings,
            parameters=self.parameters,
            rows=rows,
            sign_with=self.sign_with,
        )
        return TaskResult(self.name, 1, port, artifact, None, None, 0, size, time.monotonic() - self.begun)


def write_checked(
    version: Path,
    write: Write,
    artifact: Artifact,
    backbone: Backbone,
    max_rank: int,
    rows: Sequence[Any] = (),
    pairs: Sequence[str] | None = None,
) -> int:
    """Write the version ``version``, read it back as the server would, and add golden rows; the width of its outputs.

    The golden rows are of ``rows`` (and ``pairs``), or of our own texts. Raises `Refused` with the server's own words.
    """
    write(version)
    try:
        width = _read(version, backbone, max_rank)
    except FMplexError as error:
        raise Refused(f"the server would refuse this version: {error}") from error
    if (golden := make_golden(version, artifact, backbone, rows, pairs)) is not None:
        write_golden(version, golden)
    return width


def _read(version: Path, backbone: Backbone, max_rank: int) -> int:
    content = read_version(version, version, backbone.facts, max_rank)
    if content.artifact.head == "transformers":
        import torch

        parameters = {name: torch.from_numpy(array) for name, array in content.head.items()}
        transformers_head(content.artifact, parameters, backbone.facts, backbone.model)
    return content.width


def publish_new(
    repository: Path,
    name: str,
    fm: str,
    artifact: Artifact,
    write: Write,
    *,
    backbone: Backbone,
    settings: FMSettings,
    parameters: Mapping[str, str],
    rows: Sequence[Any] = (),
    pairs: Sequence[str] | None = None,
    sign_with: Ed25519PrivateKey | None = None,
) -> tuple[int, int]:
    """Put the new vFM ``name`` into ``repository`` on the lowest free port of ``fm``; its port, its bytes on disk."""
    with publish.staged(repository) as scratch:
        version = scratch / "version"
        width = write_checked(version, write, artifact, backbone, settings.max_adapter_rank, rows, pairs)
        if sign_with is not None:
            sign_version(version, name, sign_with)
        size = bytes_of(version)
        port = publish.publish_vfm(
            repository,
            name,
            fm,
            settings.ports,
            version,
            artifact,
            width,
            max_batch_size=model_batch_size(repository, fm),
            parameters=dict(parameters),
        )
    return port, size


def model_batch_size(repository: Path, fm: str) -> int:
    """Most rows of one request: the physical FM's own limit, at most `MAX_BATCH_SIZE`."""
    limit = int(read_config(repository / fm / "config.pbtxt").max_batch_size)
    return min(MAX_BATCH_SIZE, limit) if limit else MAX_BATCH_SIZE


def bytes_of(folder: Path) -> int:
    """Of all files in ``folder``."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
