"""``fmplex health``: whether a running server answers, for containers and load balancers."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.markup import escape

from fmplex_backend.errors import InvalidInput
from fmplex_client import Client, FMplexClientError
from fmplex_tools.console import out
from fmplex_tools.infer_cli import ProtocolName, TlsCa, Token, Url, default_url, protocol_of
from fmplex_tools.server.health import Health, examine


def health(
    vfms: Annotated[
        list[str] | None, typer.Argument(metavar="[VFM]...", help="Ask these, and not one of every physical FM.")
    ] = None,
    url: Url = "",
    protocol: ProtocolName = "http",
    metrics: Annotated[
        str, typer.Option(help="HOST:PORT of the metrics, which name the physical FMs.")
    ] = "127.0.0.1:8002",
    timeout: Annotated[float, typer.Option(help="Seconds until all must have answered.")] = 5.0,
    token: Token = "",
    tls_ca: TlsCa = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Ask a vFM of every physical FM a real row: exit code 0 where all answer, otherwise 1 and the reason.

    A line for each physical FM, or for each VFM that is named; one that reads series of several channels can only be
    asked by its physical FM.

    Examples:

      fmplex health

      fmplex health tweet_sentiment news_topic --url 10.0.0.7:8000 --json

      fmplex health --protocol grpc --url fm.example:8001 --tls-ca root.pem review_polarity
    """
    try:
        spoken = protocol_of(protocol)
        with Client(url or default_url(spoken), spoken, timeout, token=token, tls_ca=tls_ca) as client:
            found = examine(client, metrics, vfms or [], timeout, token=bool(token))
    except FMplexClientError as error:
        raise InvalidInput(str(error)) from None
    for each in found:
        if as_json:
            print(json.dumps(_as_dict(each)))
        else:
            out.print(_line(each), soft_wrap=True)
    if any(each.error for each in found):
        raise typer.Exit(1)


def _as_dict(health: Health) -> dict[str, object]:
    return {
        "ok": health.error is None,
        "fm": health.fm,
        "vfm": health.vfm,
        "ms": round(health.seconds * 1e3, 1),
        "reason": health.error,
    }


def _line(health: Health) -> str:
    who = ": ".join(escape(name) for name in (health.fm, health.vfm) if name is not None) or "server"
    if health.error is not None:
        return f"[red]failed[/]  {who}: {escape(health.error)}"
    did = "answered" if health.vfm is not None else "no vFM to ask, its host answered"
    return f"[green]ok[/]      {who} {did} in {health.seconds * 1e3:.0f} ms"
