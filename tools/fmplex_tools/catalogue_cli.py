"""``fmplex catalogue``: real tasks of every modality, built from data that packages carry."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from fmplex_backend.errors import NotFound, Unavailable
from fmplex_tools.catalogue.build import build, read_results
from fmplex_tools.catalogue.report import as_markdown, as_table
from fmplex_tools.catalogue.specs import MODALITIES, chosen
from fmplex_tools.console import err, out
from fmplex_tools.task_cli import Group

Repository = Annotated[Path, typer.Option("--repository", "-r", help="Model repository, made where there is none.")]
Only = Annotated[str, typer.Option(help="Names, comma-separated, with * and ?; all unless told.")]
Quick = Annotated[bool, typer.Option("--quick", help="Few tasks of every modality.")]
DEFAULT = Path("catalogue_repository")

app = typer.Typer(
    cls=Group,
    help="The catalogue: about a hundred real tasks in text, vision, sound and series.",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command("build")
def build_(
    repository: Repository = DEFAULT,
    only: Only = "",
    quick: Quick = False,
    jobs: Annotated[int, typer.Option(min=1, max=64, help="Tasks at a time, each with its part of the cores.")] = 2,
    markdown: Annotated[Path | None, typer.Option(help="Write the table here.")] = None,
) -> None:
    """Fetch data and backbones, train what is missing, publish the vFMs. Run again, it goes on where it stopped.

    Only data files are taken out of packages; nothing of them is imported or run. Exits with 1 where a task could not
    be made; the others are.

    Examples:

      fmplex catalogue build --quick

      fmplex catalogue build --only 'clipart*,emoji*' -r /srv/models

      fmplex serve -r catalogue_repository
    """
    wanted = chosen(only, quick=quick)
    failed = build(repository, wanted, jobs, out)
    made = read_results(repository)
    out.print(as_table(wanted, made))
    if markdown is not None:
        markdown.write_text(as_markdown(wanted, made), encoding="utf-8")
    for name, why in failed.items():
        err.print(f"{name}: {why}", style="yellow", markup=False, soft_wrap=True)
    if failed:
        raise Unavailable(f"{len(failed)} of {len(wanted)} tasks were not made; run it again to try once more")


@app.command("evaluate")
def evaluate_(
    repository: Repository = DEFAULT,
    only: Only = "",
    quick: Quick = False,
    url: Annotated[str, typer.Option(help="HOST:PORT of a server that serves the repository.")] = "",
    protocol: Annotated[str, typer.Option(help="http or grpc.")] = "http",
) -> None:
    """Send every held-out row through a running server and compare its quality with what training wrote down.

    Rows go in batches, some of them alone too. Tasks that are not in the repository are left out. Exits with 1 where a
    vFM is not as good as was written down, or answers a row alone otherwise than in a batch.

    Examples:

      fmplex serve -r catalogue_repository

      fmplex catalogue evaluate --quick
    """
    from rich.progress import track

    from fmplex_client import Client
    from fmplex_tools.infer_cli import default_url, protocol_of
    from fmplex_tools.tasks.served import TIMEOUT_S, evaluate_served, scores_table

    wire = protocol_of(protocol)
    there = [entry for entry in chosen(only, quick=quick) if (repository / entry.name).is_dir()]
    if not there:
        raise NotFound(f"none of these tasks is in {repository}; `fmplex catalogue build` makes them")
    with Client(url or default_url(wire), wire, timeout=TIMEOUT_S) as client:
        scores = [
            evaluate_served(client, repository, entry.name, entry.load(), entry.options)
            for entry in track(there, "asking for every held-out row", console=err, transient=True)
        ]
    table, bad = scores_table((live, live.as_written) for live in scores)
    out.print(table)
    if bad:
        raise typer.Exit(1)


@app.command("list")
def list_(only: Only = "", quick: Quick = False) -> None:
    """List the tasks, and where their data comes from.

    Examples:

      fmplex catalogue list

      fmplex catalogue list --only '*polarity'
    """
    table = Table("vFM", "what", "modality", "data")
    for entry in chosen(only, quick=quick):
        data = ", ".join(f"{source.package} {source.version} ({source.licence})" for source in entry.sources[:1])
        table.add_row(entry.name, entry.what, MODALITIES[entry.fm], data)
    out.print(table)
