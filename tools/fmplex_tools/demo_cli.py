"""``fmplex demo``: the demo repository."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from fmplex_tools.console import out
from fmplex_tools.demo import BUNDLES, DEMO, build
from fmplex_tools.demo import ensure_demo as _ensure_demo
from fmplex_tools.task_cli import Group

DEFAULT_REPOSITORY = Path("model_repository")
Repository = Annotated[Path, typer.Option("--repository", "-r", help="Model repository with the physical FM in it.")]
ensure_demo = _ensure_demo

app = typer.Typer(cls=Group, no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]})


@app.command("build")
def build_(repository: Repository = DEFAULT_REPOSITORY) -> None:
    """Fetch backbone and data, and train what is missing of the demo. Run again, it goes on where it stopped.

    Examples:

      fmplex demo build

      fmplex demo build -r /srv/models
    """
    if not build.missing(repository):
        out.print(build.results_table(repository))
    _ensure_demo(repository, out)


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
