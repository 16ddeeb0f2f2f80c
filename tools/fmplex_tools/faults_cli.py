"""``fmplex bench faults``: what users notice when things die."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress

from fmplex_tools.bench.engine.command import (
    FM,
    REPOSITORY,
    JsonFile,
    PlotsTo,
    Repository,
    Seconds,
    Seed,
    Threads,
    carry_out,
)
from fmplex_tools.bench.fair.bench import Outcome
from fmplex_tools.console import fail, out

app = typer.Typer(
    no_args_is_help=True, help="What users notice when things die, and of floods, on a server of its own."
)
Vfms = Annotated[int, typer.Option(min=2, max=512, help="That are asked.")]


@app.command()
def kills(
    times: Annotated[int, typer.Option("--kills", min=1, max=10_000, help="Faults, the kinds by turns.")] = 200,
    vfms: Vfms = 32,
    clients: Annotated[int, typer.Option(min=1, max=256, help="At a time, each in a closed loop.")] = 16,
    threads: Threads = 0,
    seed: Seed = 0,
    json_file: JsonFile = None,
    repository: Repository = REPOSITORY,
) -> None:
    """Kill, abort and stop engines, simulate a device fault and a full memory, all under load; check every answer.

    Exits with 1 where a request fails or is answered wrongly, or recovering takes too long.

    Examples:

      fmplex bench faults kills

      fmplex bench faults kills --kills 10 --vfms 8
    """
    from fmplex_tools.bench.faults import kills as scenario

    def measure(progress: Progress, noted: dict[str, Any]) -> Outcome:
        plan = scenario.KillsPlan(
            source=repository, fm=FM, kills=times, vfms=vfms, clients=clients, threads=threads, seed=seed
        )
        outcome = scenario.kills(plan, progress, noted)
        for wrong in outcome.details["wrong"]:
            fail(wrong)
        return outcome

    carry_out("kills", measure, {"clients": clients, "threads": threads, "seed": seed}, json_file, None)


@app.command()
def poison(
    seconds: Seconds = 300.0,
    vfms: Vfms = 32,
    rate: Annotated[float, typer.Option(min=1, max=1000, help="Requests a second to the others.")] = 20.0,
    seed: Seed = 0,
    json_file: JsonFile = None,
    repository: Repository = REPOSITORY,
) -> None:
    """Have one vFM send rows that end every engine that runs them; the others must not notice.

    Examples:

      fmplex bench faults poison

      fmplex bench faults poison --seconds 30 --vfms 8
    """
    from fmplex_tools.bench.faults import poison as scenario

    def measure(progress: Progress, noted: dict[str, Any]) -> Outcome:
        plan = scenario.PoisonPlan(source=repository, fm=FM, seconds=seconds, vfms=vfms, rate=rate, seed=seed)
        return scenario.poison(plan, progress, noted)

    carry_out("poison", measure, {"seconds": seconds, "rate": rate, "seed": seed}, json_file, None)


@app.command()
def servers(
    times: Annotated[
        int, typer.Option("--kills", min=1, max=10_000, help="Of hosts and of tritonserver, by turns.")
    ] = 40,
    vfms: Vfms = 8,
    clients: Annotated[int, typer.Option(min=1, max=256, help="Of fmplex_client, each in a closed loop.")] = 8,
    seed: Seed = 0,
    json_file: JsonFile = None,
    repository: Repository = REPOSITORY,
) -> None:
    """Kill the host and tritonserver under `fmplex serve`, again and again, with clients of ours asking all the time.

    Exits with 1 where a request is lost or answered wrongly. Each kill takes about as long as a start.

    Examples:

      fmplex bench faults servers

      fmplex bench faults servers --kills 4
    """
    from fmplex_tools.bench.faults import servers as scenario

    def measure(progress: Progress, noted: dict[str, Any]) -> Outcome:
        plan = scenario.ServersPlan(source=repository, fm=FM, kills=times, vfms=vfms, clients=clients, seed=seed)
        return scenario.servers(plan, progress, noted)

    carry_out("servers", measure, {"vfms": vfms, "seed": seed}, json_file, None)


@app.command()
def overload(
    seconds: Seconds = 600.0,
    vfms: Vfms = 16,
    rows: Annotated[int, typer.Option(min=1, max=64, help="In a request of a vFM that floods.")] = 16,
    threads: Threads = 0,
    seed: Seed = 0,
    json_file: JsonFile = None,
    repository: Repository = REPOSITORY,
) -> None:
    """Ask for ten times what the server can do, from half of its vFMs; the others ask for less than their share.

    Takes --seconds of overload, and half as much again for what it is compared with. Exits with 1 where much less is
    answered than without the flood, a light vFM suffers, or memory grows.

    Examples:

      fmplex bench faults overload

      fmplex bench faults overload --seconds 60 --vfms 8
    """
    from fmplex_tools.bench.faults import overload as scenario

    def measure(progress: Progress, noted: dict[str, Any]) -> Outcome:
        plan = scenario.OverloadPlan(
            source=repository, fm=FM, seconds=seconds, vfms=vfms, rows=rows, threads=threads, seed=seed
        )
        return scenario.overload(plan, progress, noted)

    conditions = {"seconds": seconds, "vfms": vfms, "rows": rows, "threads": threads, "seed": seed}
    carry_out("overload", measure, conditions, json_file, None)


@app.command()
def soak(
    seconds: Seconds = 3600.0,
    vfms: Vfms = 24,
    clients: Annotated[int, typer.Option(min=1, max=256, help="At a time, each in a closed loop.")] = 8,
    threads: Threads = 0,
    seed: Seed = 0,
    json_file: JsonFile = None,
    plots_to: PlotsTo = None,
    repository: Repository = REPOSITORY,
) -> None:
    """Everything at once for an hour: churn, floods, kills, poison, malformed requests; every answer is checked.

    Exits with 1 where a request is answered wrongly or fails without excuse, or where memory, threads, files or
    segments of shared memory are not flat at the end.

    Examples:

      fmplex bench faults soak --json soak.json --plots docs/plots

      fmplex bench faults soak --seconds 120 --vfms 8
    """
    from fmplex_tools.bench.faults import soak as scenario
    from fmplex_tools.bench.faults.soak_report import draw

    def measure(progress: Progress, noted: dict[str, Any]) -> Outcome:
        plan = scenario.SoakPlan(
            source=repository, fm=FM, seconds=seconds, vfms=vfms, clients=clients, threads=threads, seed=seed
        )
        outcome = scenario.soak(plan, progress, noted)
        for wrong in outcome.details["wrong"]:
            fail(wrong)
        if plots_to is not None:
            out.print(f"drawn: {draw(outcome, plots_to)}")
        return outcome

    conditions = {"seconds": seconds, "clients": clients, "threads": threads, "seed": seed}
    carry_out("soak", measure, conditions, json_file, None)


@app.command()
def malformed(
    requests: Annotated[int, typer.Option("--requests", min=100, max=10_000_000, help="Of both protocols.")] = 100_000,
    vfms: Vfms = 8,
    clients: Annotated[int, typer.Option(min=1, max=64, help="Of each protocol, each in a closed loop.")] = 4,
    only: Annotated[list[str] | None, typer.Option(help="Kinds that begin so, e.g. 'HTTP, deep'; repeatable.")] = None,
    seed: Seed = 0,
    json_file: JsonFile = None,
    repository: Repository = REPOSITORY,
) -> None:
    """Send malformed requests of some thirty kinds over HTTP and gRPC, with good ones between them.

    Exits with 1 where a process ends, a request hangs, something leaks, or a good request is not answered rightly. How
    each kind ended is in the --json file.

    Examples:

      fmplex bench faults malformed

      fmplex bench faults malformed --requests 5000 --only 'gRPC, wrong shapes'
    """
    from fmplex_tools.bench.faults import malformed as scenario

    def measure(progress: Progress, noted: dict[str, Any]) -> Outcome:
        plan = scenario.MalformedPlan(
            source=repository, fm=FM, requests=requests, vfms=vfms, clients=clients, kinds=only or (), seed=seed
        )
        return scenario.malformed(plan, progress, noted)

    carry_out("malformed", measure, {"vfms": vfms, "seed": seed}, json_file, None)


@app.command()
def access(
    seed: Seed = 0,
    json_file: JsonFile = None,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", help="Write the table of who, what and answer here.")
    ] = None,
    repository: Repository = REPOSITORY,
) -> None:
    """Try everything as everybody on a server with `--secure`: what must be refused, is it?

    Certificates are made for it. Exits with 1 where anything is answered that must not be, or the other way round.

    Examples:

      fmplex bench faults access --markdown access.md
    """
    from fmplex_tools.bench.engine.fleet import FleetBase
    from fmplex_tools.bench.faults import access as scenario

    def measure(progress: Progress, noted: dict[str, Any]) -> Outcome:
        outcome = scenario.access(FleetBase(source=repository, fm=FM, seed=seed), progress, noted)
        for one in outcome.details["tried"]:
            if not one["right"]:
                wanted = "must be answered" if one["refusal"] is None else f"must be told {one['refusal']!r}"
                fail(f"{one['who']}, {one['what']} ({one['way']}): {wanted}, but: {one['error'] or 'was answered'}")
        if markdown is not None:
            markdown.write_text(scenario.as_markdown(outcome), encoding="utf-8")
        return outcome

    carry_out("access", measure, {"seed": seed}, json_file, None)
