"""``fmplex fetch``: bring the backbones that a repository names into the cache, before a server needs them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fmplex_tools.console import DEFAULT_REPOSITORY, out
from fmplex_tools.fetching import fetch_backbones


def fetch(
    repository: Annotated[Path, typer.Option("--repository", "-r", help="Model repository.")] = DEFAULT_REPOSITORY,
) -> None:
    """Fetch the backbones that the physical FMs of a repository name; what is here already is left alone.

    `fmplex serve` does this by itself; use it to prepare an image or a machine without network.

    Examples:

      fmplex fetch

      fmplex fetch -r /srv/models
    """
    for fm, folder in fetch_backbones(repository, out).items():
        out.print(f"{fm}: {folder}", soft_wrap=True)
