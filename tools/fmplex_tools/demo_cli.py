"""``fmplex demo``: the demo repository."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from fmplex_tools.console import DEFAULT_REPOSITORY, out
from fmplex_tools.demo import BUNDLES, DEMO, build
from fmplex_tools.task_cli import Group

Repository = Annotated[Path, typer.Option("--repository", "-r", help="Model repository with the physical FM in it.")]

app = typer.Typer(
    cls=Group,
    help="The demo repository: eight real tasks on one MiniLM.",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command("build")
def build_(repository: Repository = DEFAULT_REPOSITORY) -> None:
    """Fetch backbone and data, and train what is missing of the demo. Run again, it goes on where it stopped.

    Examples:

      fmplex demo build

      fmplex demo build -r /srv/models
    """
    if not build.missing(repository):
        out.print(build.results_table(repository))
    build.ensure_demo(repository, out)


@app.command("list")
def list_(repository: Repository = DEFAULT_REPOSITORY) -> None:
    """List the demo's vFMs, where their data comes from, and whether they are built.

    Examples:

      fmplex demo list
    """
    missing = set(build.missing(repository))
    table = Table("vFM", "what", "data", "built")
    for task in DEMO:
        data = f"{task.source.package} {task.source.version} ({task.source.licence})"
        table.add_row(task.name, task.what, data, "no" if task.name in missing else "yes")
    for bundle in BUNDLES:
        table.add_row(bundle.name, bundle.what, " + ".join(bundle.members), "no" if bundle.name in missing else "yes")
    out.print(table)


@app.command("evaluate")
def evaluate_(
    repository: Repository = DEFAULT_REPOSITORY,
    url: Annotated[str, typer.Option(help="HOST:PORT of a server that serves the demo.")] = "",
    protocol: Annotated[str, typer.Option(help="http or grpc.")] = "http",
) -> None:
    """Send every held-out row through a running server and compare its quality with what training wrote down.

    Rows go in batches, some of them alone too. Exit code 1 where a vFM is not clearly above its baseline, where it is
    not as good as was written down, or where a row alone is answered differently than in a batch.

    Examples:

      fmplex demo evaluate

      fmplex demo evaluate --protocol grpc --url 127.0.0.1:8001
    """
    from fmplex_client import Client
    from fmplex_tools.infer_cli import default_url, protocol_of
    from fmplex_tools.tasks.served import TIMEOUT_S, evaluate_served, scores_table

    wire = protocol_of(protocol)
    with (
        out.status("asking the server for every held-out row"),
        Client(url or default_url(wire), wire, timeout=TIMEOUT_S) as client,
    ):
        scores = [evaluate_served(client, repository, task.name, task.load(), task.options) for task in DEMO]
    table, bad = scores_table((live, live.good) for live in scores)
    out.print(table)
    if bad:
        raise typer.Exit(1)
