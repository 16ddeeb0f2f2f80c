"""``fmplex top``: what the vFMs of a running server are doing, live, as its metrics tell it."""

from __future__ import annotations

import dataclasses
import json
import time
from typing import Annotated

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from fmplex_backend.errors import FMplexError, InvalidInput, NotFound
from fmplex_tools.console import out
from fmplex_tools.top.figures import FmFigures, Follower
from fmplex_tools.top.scrape import scrape
from fmplex_tools.top.view import SORTS, screen

WIDTH = 132
"""Of a table that goes to a file or a pipe."""
PATIENCE = 15.0
"""Seconds; a server with a thousand busy vFMs tells new values every 6 s."""


def top(
    url: Annotated[str, typer.Option(help="Where the server tells its metrics.")] = "http://127.0.0.1:8002/metrics",
    interval: Annotated[float, typer.Option(min=1, max=60, help="Seconds between two looks.")] = 2.0,
    once: Annotated[
        bool, typer.Option("--once", help="Print one table and exit; also where the output is no terminal.")
    ] = False,
    sort: Annotated[str, typer.Option(help=f"By what: {', '.join(SORTS)}.")] = "rows",
    fm: Annotated[str | None, typer.Option(help="Only this physical FM.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A line of JSON for each look instead of tables.")] = False,
) -> None:
    """Show the vFMs of a running server live, like top: share against entitled share, rates, queue and latency.

    Rates and quantiles are of the time between two looks. Ctrl-C ends it.

    Examples:

      fmplex top

      fmplex top --url http://127.0.0.1:9002/metrics --sort p99

      fmplex top --once

      fmplex top --json --interval 10 >> figures.jsonl
    """
    if sort not in SORTS:
        raise InvalidInput(f"--sort {sort!r}: choose one of {', '.join(SORTS)}")
    watch = _Watch(url, fm)
    try:
        watch.look()
        time.sleep(interval)
        if as_json:
            _print_json(watch, interval, once)
        elif once or not out.is_terminal:
            page = out if out.is_terminal else Console(width=WIDTH, highlight=False)
            page.print(screen(watch.look_until_newer(), sort, page.width))
        else:
            _live(watch, interval, sort)
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


class _Watch:
    """Looks at one server again and again."""

    def __init__(self, url: str, fm: str | None) -> None:
        self._url, self._fm = url, fm
        self._follower = Follower()

    def look(self) -> list[FmFigures]:
        """Figures since the last look that saw newer values. Raises `FMplexError`."""
        found = scrape(self._url)
        if self._fm is not None:
            if self._fm not in found:
                raise NotFound(f"no physical FM {self._fm!r} at {self._url}; there are {', '.join(sorted(found))}")
            found = {self._fm: found[self._fm]}
        return self._follower.follow(found)

    def look_until_newer(self) -> list[FmFigures]:
        """Like `look`, but waits, at most `PATIENCE`, until every physical FM has told newer values."""
        end = time.monotonic() + PATIENCE
        while True:
            figures = self.look()
            if all(each.seconds for each in figures) or time.monotonic() > end:
                return figures
            time.sleep(0.2)


def _print_json(watch: _Watch, interval: float, once: bool) -> None:
    while True:
        figures = [dataclasses.asdict(each) for each in watch.look_until_newer()]
        print(json.dumps({"time": round(time.time(), 3), "fms": figures}), flush=True)
        if once:
            return
        time.sleep(interval)


def _live(watch: _Watch, interval: float, sort: str) -> None:
    shown: RenderableType = ""
    with Live(console=out, screen=True, auto_refresh=False) as live:
        while True:
            try:
                shown = screen(watch.look(), sort, out.width, out.height - 1)
                live.update(shown, refresh=True)
            except FMplexError as error:  # it may come back
                live.update(Group(Text(f"{error}; trying again", style="red"), shown), refresh=True)
            time.sleep(interval)
