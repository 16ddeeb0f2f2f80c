"""``fmplex monitoring``: what Prometheus and Grafana need to watch a server or a fleet."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fmplex_tools.console import out
from fmplex_tools.monitoring.targets import targets_file
from fmplex_tools.monitoring.writing import CONFIG, PROVISIONING, RUNBOOK, Wanted, write

app = typer.Typer(no_args_is_help=True, help="What Prometheus and Grafana need to watch a server or a fleet.")


@app.callback()
def monitoring() -> None:
    """What Prometheus and Grafana need to watch a server or a fleet."""


@app.command(name="write")
def write_command(
    folder: Annotated[Path, typer.Argument(help="Where to; made if it is not there, its files are written anew.")],
    metrics: Annotated[
        list[str] | None,
        typer.Option(
            help="HOST:PORT of a server's metrics; may be given several times.", show_default="127.0.0.1:8002"
        ),
    ] = None,
    fleet: Annotated[
        list[str] | None,
        typer.Option(help="Name of a fleet whose door runs on this machine, by this user; likewise."),
    ] = None,
    prometheus: Annotated[str, typer.Option(help="Where Grafana finds Prometheus.")] = "http://127.0.0.1:9090",
    alertmanager: Annotated[
        list[str] | None, typer.Option(help="HOST:PORT of an Alertmanager that alerts are sent to; likewise.")
    ] = None,
    interval: Annotated[int, typer.Option(min=1, max=15, help="Seconds between two scrapes.")] = 10,
    runbook: Annotated[str, typer.Option(help="Where the alerts say that their runbook is.")] = RUNBOOK,
) -> None:
    """Write configuration, recording rules and alerts for Prometheus, and data source and dashboards for Grafana.

    Of a fleet the door knows every server and keeps a file of them that Prometheus watches, so that nothing is written
    anew when servers come, go or move.

    Examples:

      fmplex monitoring write monitoring

      fmplex monitoring write monitoring --metrics 10.0.0.5:8002 --metrics 10.0.0.6:8002

      fmplex monitoring write monitoring --fleet fleet --alertmanager 127.0.0.1:9093
    """
    if not metrics and not fleet:
        metrics = ["127.0.0.1:8002"]
    wanted = Wanted(tuple(metrics or ()), tuple(fleet or ()), prometheus, tuple(alertmanager or ()), interval, runbook)
    made = write(folder, wanted)
    root = folder.resolve()
    out.print(f"{root}: {len(made)} files", soft_wrap=True, markup=False)
    for name in wanted.fleets:
        state = "" if targets_file(name).is_file() else ", which is not there: the fleet has not run here yet"
        out.print(f"servers of fleet {name!r}: {targets_file(name)}{state}", soft_wrap=True, markup=False)
    out.print(f"prometheus --config.file={root / CONFIG}", soft_wrap=True, markup=False)
    out.print(f"GF_PATHS_PROVISIONING={root / PROVISIONING} grafana server", soft_wrap=True, markup=False)
