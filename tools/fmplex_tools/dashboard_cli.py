"""``fmplex dashboard``: a live page of one machine or a fleet, for the browser."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Annotated
from urllib.parse import urlsplit

import typer
from rich.markup import escape

from fmplex_backend.errors import FMplexError, InvalidInput, NotFound, Unavailable
from fmplex_tools.console import err, out
from fmplex_tools.dashboard.watch import Watch, scrape_soon
from fmplex_tools.server.process import check_port_free

DEFAULT_METRICS = "http://127.0.0.1:8002/metrics"
_FIRST_METRICS = 5.0
"""Seconds for a server that has just become ready to tell its first metrics."""
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def dashboard(
    metrics: Annotated[
        list[str] | None,
        typer.Option(help=f"Where a server tells its metrics; may be repeated. {DEFAULT_METRICS} unless given."),
    ] = None,
    fleet: Annotated[str | None, typer.Option(help="Show this fleet instead, 'run.name' in its fleet file.")] = None,
    address: Annotated[
        str, typer.Option(help="Of the fleet's Ray cluster; auto: the one that runs on this machine.")
    ] = "auto",
    host: Annotated[
        str, typer.Option(help="Where the page listens; others than this machine see it at 0.0.0.0.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Of the page.")] = 8090,
    interval: Annotated[float, typer.Option(min=1, max=60, help="Seconds between two looks.")] = 1.0,
) -> None:
    """Show a running server or fleet live as a web page: shares, rates, latencies, queues, where everything is.

    It only looks. Figures are those of `fmplex top`; charts show the last five minutes. A server that does not answer
    is shown as such, and goes on when it is back. Ctrl-C ends it.

    Examples:

      fmplex dashboard

      fmplex dashboard --metrics http://10.0.0.5:8002/metrics --metrics http://10.0.0.6:8002/metrics

      fmplex dashboard --fleet fleet --address auto

      fmplex dashboard --host 0.0.0.0 --port 9000 --interval 5
    """
    if fleet is not None and metrics:
        raise InvalidInput("--fleet asks the fleet's controller where its servers are: leave out --metrics")
    check_port_free(host, port)
    serve_page = _page()
    with contextlib.ExitStack() as stack:
        watch = Watch(interval)
        if fleet is not None:
            from fmplex_tools.dashboard.asking import FleetAsker

            asker = FleetAsker(fleet, address)
            stack.callback(asker.close)  # after the watch has stopped asking it
            with err.status(f"asking the controller of fleet {fleet!r}"):
                asker()
            watch.fleet(fleet, asker)
        else:
            watch.servers(_servers(metrics or [DEFAULT_METRICS]))
        stack.enter_context(watch)
        serve_page(watch, host, port, lambda: _say(host, port))


def _page() -> Callable[[Watch, str, int, Callable[[], None]], None]:
    """Raises `NotFound` where NiceGUI is not installed."""
    try:
        from fmplex_tools.dashboard.serving import serve_page
    except ModuleNotFoundError as error:
        raise NotFound(f"the page needs {error.name}: pip install 'fmplex[dashboard]'") from None
    return serve_page


def _servers(urls: list[str]) -> dict[str, str]:
    """Name → metrics. Raises `InvalidInput` where one is no FMplex server, `Unavailable` where none answers."""
    found: dict[str, str] = {}
    silent: list[FMplexError] = []
    for url in dict.fromkeys(urls):
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise InvalidInput(f"--metrics {url!r} is no address of metrics; e.g. {DEFAULT_METRICS}")
        try:
            _first_look(url)
        except Unavailable as error:
            silent.append(error)
        name = parts.netloc if parts.netloc not in found else url
        found[name] = url
    if len(silent) == len(found):
        raise Unavailable("; ".join(map(str, silent)))
    for each in silent:
        err.print(f"[yellow]{escape(str(each))}[/]; the page shows it as silent until it answers", soft_wrap=True)
    return found


def _first_look(url: str) -> None:
    """Raises as `scrape`; a server that is ready tells its first metrics some seconds later."""
    end = time.monotonic() + _FIRST_METRICS
    while True:
        try:
            scrape_soon(url)
            return
        except InvalidInput:
            if time.monotonic() > end:
                raise
        time.sleep(0.2)


def _say(host: str, port: int) -> None:
    shown = f"[{host}]" if ":" in host else host
    out.print(f"dashboard  http://{shown}:{port}  · Ctrl-C stops", soft_wrap=True)
    if host not in _LOOPBACK:
        err.print(
            f"[yellow]port {port} is open to everybody who reaches {host}: names of vFMs and servers, and their "
            "figures, without a password and without TLS; nothing can be changed there[/]",
            soft_wrap=True,
        )
