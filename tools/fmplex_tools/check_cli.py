"""``fmplex check``: would the server serve this repository? Asked of the same code, with a real engine, without it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from fmplex_backend.errors import FMplexError, NotFound
from fmplex_backend.host.host import FMHost
from fmplex_backend.host.log import HostLog
from fmplex_backend.repository.config import fm_settings
from fmplex_backend.repository.layout import physical_fms
from fmplex_tools.console import DEFAULT_REPOSITORY, fail, out
from fmplex_tools.serving import refusals, unreadable, vfm_table

_NAMED = 5


def check(
    repository: Annotated[Path, typer.Option("--repository", "-r", help="Model repository.")] = DEFAULT_REPOSITORY,
    fm: Annotated[str | None, typer.Option(help="Only this physical FM.")] = None,
) -> None:
    """Validate a repository without a server: every rule that the server applies, in the same words.

    Every version answers its golden rows, as before it is served.

    Exit code 0 when everything would be served, 1 otherwise.

    Examples:

      fmplex check

      fmplex check -r /srv/models --fm minilm
    """
    problems: list[str] = unreadable(repository)
    found = physical_fms(repository)
    if fm is not None and fm not in found:
        raise NotFound(f"no physical FM {fm!r} in {repository}; there are {found}")
    if not found:
        problems.append(f'{repository}: no physical FM (a model with backend: "fmplex")')
    for name in [fm] if fm else found:
        try:
            with out.status(f"checking {name}: loading its backbone"):
                status = check_fm(repository, name)
        except FMplexError as error:
            problems.append(str(error))
            continue
        out.print(vfm_table(status, served="ok"))
        out.print(golden_line(status))
        problems += refusals(status) + unanswered(status)
    for problem in dict.fromkeys(problems):
        fail(problem)
    if problems:
        raise typer.Exit(1)
    out.print(f"[green]{escape(str(repository))}: everything in it would be served[/]")


def check_fm(repository: Path, fm: str) -> dict[str, Any]:
    """Start the FM host of ``fm`` with one engine on the CPU, let it load everything, and return its status.

    Raises `FMplexError` where the physical FM itself cannot be served.
    """
    settings = fm_settings(repository / fm)
    host = FMHost(
        repository.resolve(), fm, HostLog(lambda _: None), settings=settings.model_copy(update={"engines": "cpu"})
    )
    host.start()
    try:
        return host.status()
    finally:
        host.stop()


def golden_line(status: dict[str, Any]) -> str:
    """How many vFMs answered their golden rows, and which have none."""
    served = [vfm for vfm in status["vfms"] if "golden" in vfm]
    without = [vfm["name"] for vfm in served if vfm["golden"] == "none"]
    names = f"; none: {', '.join(without[:_NAMED])}{', …' if len(without) > _NAMED else ''}" if without else ""
    return f"golden rows: {len(served) - len(without)} of {len(served)} vFMs answered them as they must{escape(names)}"


def unanswered(status: dict[str, Any]) -> list[str]:
    """vFMs that are neither served nor refused: their golden rows had no answer in time."""
    names = [vfm["name"] for vfm in status["vfms"] if vfm["state"] == "loading" and not vfm["reason"]]
    return [f"vFM {name!r}: it could not be loaded and checked in time; run the check again" for name in names]
