"""``fmplex bench fair``: the fair queue's promises, measured on a server of its own."""

from __future__ import annotations

import os
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from fmplex_backend.errors import FMplexError
from fmplex_backend.scheduling.policies import PolicyName
from fmplex_tools.bench.fair.arena import arena
from fmplex_tools.bench.fair.bench import FM, VFMS, Bench, Outcome
from fmplex_tools.bench.fair.cost import cost
from fmplex_tools.bench.fair.isolation import expired, flood, slo
from fmplex_tools.bench.fair.report import as_json, plots, table
from fmplex_tools.bench.fair.shares import weight_edit, weights
from fmplex_tools.bench.fair.throughput import throughput
from fmplex_tools.console import DEFAULT_REPOSITORY, err, fail, out

SCENARIOS: dict[str, Callable[[Bench], Outcome]] = {
    "weights": weights,
    "cost": cost,
    "flood": flood,
    "slo": slo,
    "expired": expired,
    "weight-edit": weight_edit,
    "throughput": throughput,
}
Scenario = Enum("Scenario", {name: name for name in SCENARIOS}, type=str)  # type: ignore[misc]


def fair(
    scenarios: Annotated[list[Scenario] | None, typer.Argument(help="What to measure; all unless given.")] = None,
    seconds: Annotated[float, typer.Option(min=2, max=600, help="Of each measured phase.")] = 20.0,
    policy: Annotated[PolicyName, typer.Option(help="Scheduling policy to measure, of the physical FM.")] = "fair",
    threads: Annotated[int, typer.Option(min=0, help="Compute threads of the engine; 0 is every core.")] = 0,
    slo_ms: Annotated[
        float, typer.Option(min=0, help="Latency objective for `slo`; 0 is the p99 alone and two full batches.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Of texts and arrival times.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write figures and series here.")] = None,
    plots_to: Annotated[
        Path | None, typer.Option("--plots", help="Folder to draw plots into.", file_okay=False)
    ] = None,
    repository: Annotated[Path, typer.Option("--repository", "-r", help="With the demo built.")] = DEFAULT_REPOSITORY,
) -> None:
    """Measure what the fair queue promises on a real server of its own, and compare with the goals.

    Serves copies of four of the demo's vFMs on free ports; the repository itself is only read. Exits with 1 where a
    goal is missed.

    weights: shares of device time at weights 1:2:4. cost: seconds spent deciding. flood: light vFMs beside one that
    asks for ten times the capacity. slo: a latency objective in that flood. expired: rows whose time is up cost
    nothing. weight-edit: seconds until an edited weight shows. throughput: rows/s against first come, first served.

    Examples:

      fmplex bench fair

      fmplex bench fair weights flood --seconds 5

      fmplex bench fair --json fair.json --plots docs/plots
    """
    chosen = [scenario.value for scenario in scenarios] if scenarios else list(SCENARIOS)
    try:
        outcomes = _measure(chosen, repository, seconds, policy, threads, slo_ms, seed)
    except FMplexError as error:
        fail(error)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        err.print("stopped; no process is left")
        raise typer.Exit(130) from None
    out.print(table(outcomes))
    conditions = {"seconds": seconds, "policy": policy, "threads": threads, "cores": os.cpu_count(), "seed": seed}
    if json_file is not None:
        json_file.write_text(as_json(outcomes, conditions), encoding="utf-8")
    if plots_to is not None:
        for file in plots(outcomes, plots_to):
            out.print(f"drawn: {file}")
    if any(figure.good is False for outcome in outcomes.values() for figure in outcome.figures):
        raise typer.Exit(1)


def _measure(
    chosen: list[str], repository: Path, seconds: float, policy: PolicyName, threads: int, slo_ms: float, seed: int
) -> dict[str, Outcome]:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        line = progress.add_task("starting the server", total=None)
        with arena(repository, FM, VFMS, policy=policy, threads=threads) as made:
            progress.remove_task(line)
            bench = Bench(repository, made, policy, threads, seconds, progress, seed, slo_ms)
            outcomes = {name: run(bench) for name, run in SCENARIOS.items() if name in chosen}
            line = progress.add_task("stopping the server", total=None)
        return outcomes
