"""``fmplex bench engine``: one subcommand a scenario; each is a function of a file in ``bench/engine``."""

from __future__ import annotations

import typer

from fmplex_tools import engine_fleet_cli
from fmplex_tools.bench.engine.bundle import bundle
from fmplex_tools.bench.engine.gpu import gpu
from fmplex_tools.bench.engine.lone import lone
from fmplex_tools.bench.engine.mixed import mixed
from fmplex_tools.bench.engine.saturated import saturated

app = typer.Typer(no_args_is_help=True, help="What sharing one backbone costs, side by side with not sharing.")

# To add one: import its function (which imports torch only when it is called) and name it here.
COMMANDS = (mixed, saturated, lone, bundle, gpu, *engine_fleet_cli.COMMANDS)

for command in COMMANDS:
    app.command()(command)
