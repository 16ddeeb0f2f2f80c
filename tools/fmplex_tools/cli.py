"""The ``fmplex`` command: one file a group of subcommands, put together here."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

from fmplex_backend import __version__
from fmplex_backend.errors import FMplexError
from fmplex_tools.console import fail

COMMANDS = (
    *("serve", "check", "infer", "health", "top", "dashboard", "fetch", "task", "demo", "catalogue", "plan", "fleet"),
    *("monitoring", "bench"),
)
"""Each in its module ``NAME_cli``: a function of that name, or ``app`` with commands of its own."""


class Commands(TyperGroup):
    """Imports a command when it is called: all of them together take 2 s."""

    def list_commands(self, _: object) -> list[str]:
        return list(COMMANDS)

    def get_command(self, _: object, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"fmplex_tools.{cmd_name}_cli")
        alone = typer.Typer(add_completion=False)
        made = getattr(module, "app", None) or alone
        if made is alone:
            alone.command(cmd_name)(getattr(module, cmd_name))
        command = typer.main.get_command(made)
        command.name = cmd_name
        return command


app = typer.Typer(
    name="fmplex",
    cls=Commands,
    help="Virtual foundation models on Triton: many tasks, each with its own endpoint, on one shared backbone.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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
