"""``fmplex fetch``: bring the backbones that a repository names into the cache, before a server needs them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from fmplex_tools.console import DEFAULT_REPOSITORY, out
from fmplex_tools.fetching import fetch_backbones


def fetch(
    repository: Annotated[Path, typer.Option("--repository", "-r", help="Model repository.")] = DEFAULT_REPOSITORY,
    list_known: Annotated[
        bool, typer.Option("--list", help="Tell which backbones can be built, and fetch nothing.")
    ] = False,
) -> None:
    """Fetch the backbones that the physical FMs of a repository name; what is here already is left alone.

    `fmplex serve` does this by itself; use it to prepare an image or a machine without network.

    Examples:

      fmplex fetch

      fmplex fetch -r /srv/models

      fmplex fetch --list
    """
    if list_known:
        out.print(known_table())
        return
    for fm, folder in fetch_backbones(repository, out).items():
        out.print(f"{fm}: {folder}", soft_wrap=True)


def known_table() -> Table:
    """What a physical FM's ``backbone`` may name besides folders, packages and the hub."""
    from fmplex_backend.backbones.source import BUILT_PREFIX, built_dir
    from fmplex_tools.backbones.known import BUILT

    table = Table("backbone", "what", "licence", "here", box=box.SIMPLE_HEAD, pad_edge=False)
    table.columns[0].no_wrap = True
    for built in BUILT.values():
        here = "yes" if built_dir(built.name).is_dir() else ""
        table.add_row(f"{BUILT_PREFIX}{built.name}", built.what, built.licence, here)
    return table
