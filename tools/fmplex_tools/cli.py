"""The ``fmplex`` command: one file a group of subcommands, put together here."""

from __future__ import annotations

import sys

import typer

from fmplex_backend import __version__
from fmplex_backend.errors import FMplexError
from fmplex_tools import bench_cli, check_cli, demo_cli, fetch_cli, infer_cli, serve_cli, task_cli, top_cli
from fmplex_tools.console import fail

app = typer.Typer(
    name="fmplex",
    help="Virtual foundation models on Triton: many tasks, each with its own endpoint, on one shared backbone.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("serve")(serve_cli.serve)
app.command("check")(check_cli.check)
app.command("infer")(infer_cli.infer)
app.command("top")(top_cli.top)
app.command("fetch")(fetch_cli.fetch)
app.add_typer(task_cli.app, name="task", help="Make, train, import, list, change and remove vFMs.")
app.add_typer(demo_cli.app, name="demo", help="The demo repository: eight real tasks on one MiniLM.")
app.add_typer(bench_cli.app, name="bench", help="Measure.")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fmplex {__version__}")
        raise typer.Exit


@app.callback()
def root(version: bool = typer.Option(False, "--version", callback=_version, is_eager=True)) -> None:
    """Virtual foundation models on Triton."""


def main() -> None:
    """Entry point: errors that FMplex raises on purpose end in one clear line and exit code 1."""
    try:
        app()
    except FMplexError as error:
        fail(error)
        sys.exit(1)


if __name__ == "__main__":
    main()
