"""``fmplex plan``: which physical FM runs where, and which vFM sits on it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fmplex_backend.errors import InvalidInput
from fmplex_tools.console import err, out
from fmplex_tools.files import write_whole
from fmplex_tools.planner.fleet_file import EXAMPLE, parse_fleet, read_fleet
from fmplex_tools.planner.placement import PlanFile, read_plan
from fmplex_tools.planner.planning import Solver


def plan(
    fleet: Annotated[Path | None, typer.Argument(help="What there is and what is wanted.", dir_okay=False)] = None,
    before: Annotated[
        Path | None, typer.Option("--from", help="A plan to change as little as can be.", dir_okay=False)
    ] = None,
    target: Annotated[Path | None, typer.Option("--out", help="Write the plan, as JSON.", dir_okay=False)] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw it: .png, .svg or .pdf.", dir_okay=False)] = None,
    solver: Annotated[Solver, typer.Option(help="exact is for small fleets; auto tries it there.")] = "auto",
    seconds: Annotated[float, typer.Option(min=1, max=3600, help="For placing, about.")] = 40.0,
    check: Annotated[int, typer.Option(min=0, help="Devices, the fullest, to simulate; 0: none.")] = 8,
    compare: Annotated[bool, typer.Option(help="Also: the same fleet without sharing.")] = True,
    seed: Annotated[int, typer.Option(help="Of the simulation.")] = 0,
    example: Annotated[bool, typer.Option("--example", help="Print a fleet file to start from.")] = False,
) -> None:
    """Plan a fleet: the fewest devices that hold every vFM within memory, adapter slots and p99 targets.

    Of a plan it tells what fills the devices, what did not fit and what would make it fit, and what the same fleet
    would take as private copies and as spatial partitions. Exits with 1 where a vFM has no place or is too slow.

    Examples:

      fmplex plan --example > fleet.yaml

      fmplex plan fleet.yaml --out plan.json --picture plan.svg

      fmplex plan fleet.yaml --from plan.json --out plan.json
    """
    if example:
        typer.echo(EXAMPLE, nl=False)
        return
    if fleet is None:
        raise InvalidInput("name a fleet file; `fmplex plan --example` prints one")
    wanted = parse_fleet(typer.get_text_stream("stdin").read(), "standard input") if str(fleet) == "-" else None
    wanted = wanted or read_fleet(fleet)
    old = None if before is None else read_plan(before)
    with err.status("loading") as status:
        from fmplex_tools.planner.planning import plan as planned
        from fmplex_tools.planner.report import show

        made = planned(wanted, before=old, solver=solver, seconds=seconds, checked=check, seed=seed, tell=status.update)
        if picture is not None:
            from fmplex_tools.planner.picture import draw

            draw(made.packing, picture)
    show(made, out, compare=compare)
    if target is not None:
        file = PlanFile.of(made.placement, made.problem)
        write_whole(target, file.model_dump_json(indent=1) + "\n")
    if not made.good:
        raise typer.Exit(1)
