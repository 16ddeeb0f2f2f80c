"""``fmplex bench engine fleet | slots | reload | churn``: many vFMs on a real server of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress

from fmplex_backend.errors import FMplexError, InvalidInput
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
    numbers,
)
from fmplex_tools.bench.fair.bench import Outcome
from fmplex_tools.console import fail, out

MOST = 16384
"""Ports of a physical FM at most, and so its vFMs."""
Slots = Annotated[int, typer.Option("--slots", min=1, help="Adapter slots of the engine.")]
Rank = Annotated[int, typer.Option("--rank", min=1, max=1024, help="Of the adapters.")]


def fleet(
    folder: Annotated[Path, typer.Argument(help="Repository to make; it must not exist.", file_okay=False)],
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="vFMs.")] = 1000,
    rank: Rank = 8,
    heads_only: Annotated[bool, typer.Option("--heads-only", help="Without adapters.")] = False,
    seed: Seed = 0,
    repository: Repository = REPOSITORY,
) -> None:
    """Make a repository of many vFMs with random weights, to try things with. A thousand take a few seconds.

    Examples:

      fmplex bench engine fleet /tmp/fleet -n 100

      fmplex serve -r /tmp/fleet
    """
    from fmplex_tools.bench.engine.fleet import make_fleet

    try:
        if folder.exists():
            raise InvalidInput(f"{folder} exists already; choose another folder")
        names = make_fleet(folder, repository, FM, count, adapter=not heads_only, rank=rank, seed=seed)
    except FMplexError as error:
        fail(error)
        raise typer.Exit(1) from None
    out.print(f"{len(names)} vFMs, {names[0]} to {names[-1]}, on {FM} in {folder}; serve them with -r {folder}")


def slots(
    counts: Annotated[
        str, typer.Option(help="Numbers of vFMs that are asked, --slots among them; the largest are loaded.")
    ] = "8,32,64,65,128,250,500,1000",
    slots: Slots = 64,
    exponent: Annotated[float, typer.Option(min=0, max=4, help="Of Zipf's law; 0 asks all alike.")] = 1.05,
    rounds: Annotated[int, typer.Option(min=1, max=100, help="Times through all numbers; medians count.")] = 3,
    rank: Rank = 8,
    clients: Annotated[int, typer.Option(min=1, help="At a time, for the saturating load.")] = 192,
    load: Annotated[float, typer.Option(min=0.05, max=0.95, help="Of the capacity, for the open loop.")] = 0.6,
    threads: Threads = 0,
    seconds: Seconds = 10.0,
    seed: Seed = 0,
    json_file: JsonFile = None,
    plots_to: PlotsTo = None,
    repository: Repository = REPOSITORY,
) -> None:
    """Ask 1,000 vFMs by Zipf's law on an engine with 64 adapter slots, and compare with 64 vFMs.

    One server holds all of them. For each number of vFMs the same open-loop load is measured, then saturation, each for
    --seconds, side by side in every round: latency and rows/s over the number of vFMs. Also memory per vFM.

    Examples:

      fmplex bench engine slots

      fmplex bench engine slots --counts 4,8,9,32 --slots 8 --seconds 3 --rounds 1

      fmplex bench engine slots --json slots.json --plots docs/plots
    """
    from fmplex_tools.bench.engine import slots as scenario
    from fmplex_tools.bench.engine.slots_report import SlotsPlan, draw

    def measure(progress: Progress, noted: dict[str, Any]) -> Outcome:
        common = _common(repository, seconds, slots, rank, threads, seed)
        plan = SlotsPlan(
            **common,
            counts=numbers_of(counts),
            exponent=exponent,
            rounds=rounds,
            clients=clients,
            load=load,
        )
        outcome = scenario.slots(plan, progress, noted)
        if plots_to is not None:
            out.print(f"drawn: {draw(outcome, plots_to)}")
        return outcome

    conditions = {"slots": slots, "zipf": exponent, "rounds": rounds, "rank": rank, "clients": clients}
    conditions |= {"seconds": seconds, "threads": threads, "seed": seed}
    carry_out("slots", measure, conditions, json_file, None)


def reload(
    vfms: Annotated[int, typer.Option(min=1, max=512, help="Left alone, under load.")] = 16,
    pairs: Annotated[int, typer.Option(min=1, max=100, help="Windows without changes, each followed by one with.")] = 4,
    slots: Slots = 64,
    rank: Rank = 8,
    load: Annotated[float, typer.Option(min=0.05, max=0.95, help="Of the capacity.")] = 0.6,
    threads: Threads = 0,
    seconds: Seconds = 15.0,
    seed: Seed = 0,
    json_file: JsonFile = None,
    plots_to: PlotsTo = None,
    repository: Repository = REPOSITORY,
) -> None:
    """Add a vFM and remove one every second beside others under steady load: what do they notice?

    Windows of --seconds without and with changes by turns, under one load. Also how long a new vFM takes from the
    rename that puts it into the repository to its first good answer.

    Examples:

      fmplex bench engine reload

      fmplex bench engine reload --vfms 4 --pairs 1 --seconds 5
    """
    from fmplex_tools.bench.engine import reload as scenario

    def measure(progress: Progress, noted: dict[str, Any]) -> Outcome:
        common = _common(repository, seconds, slots, rank, threads, seed)
        plan = scenario.ReloadPlan(**common, vfms=vfms, pairs=pairs, load=load)
        return scenario.reload(plan, progress, noted)

    conditions: dict[str, Any] = {"vfms": vfms, "pairs": pairs, "slots": slots, "rank": rank}
    conditions |= {"seconds": seconds, "threads": threads, "seed": seed}
    carry_out("reload", measure, conditions, json_file, plots_to)


def churn(
    vfms: Annotated[int, typer.Option(min=2, max=512, help="More than --slots, so that slots change hands.")] = 24,
    versions: Annotated[int, typer.Option(min=2, max=9, help="Of each vFM, each with weights of its own.")] = 3,
    texts: Annotated[int, typer.Option(min=2, max=256, help="Whose answers are known beforehand.")] = 12,
    clients: Annotated[int, typer.Option(min=1, max=256, help="At a time, each in a closed loop.")] = 16,
    slots: Slots = 8,
    memory_mb: Annotated[int, typer.Option(min=1, help="Host memory for adapters; the rest is read from disk.")] = 2,
    rank: Rank = 8,
    threads: Threads = 0,
    seconds: Seconds = 600.0,
    seed: Seed = 0,
    json_file: JsonFile = None,
    plots_to: PlotsTo = None,
    repository: Repository = REPOSITORY,
) -> None:
    """Check every answer while vFMs and their versions come and go, slots are evicted and clients give up.

    First the answers of every version of every vFM to fixed texts are recorded, twice. Then, for --seconds, random
    load on all vFMs, while versions are published and rolled back, vFMs removed and put back on other ports, weights
    edited: every answer must be that of the version and the vFM that its info names, which must be the vFM asked.
    Then the answers are recorded again. Exits with 1 on any wrong answer.

    Examples:

      fmplex bench engine churn

      fmplex bench engine churn --vfms 8 --versions 2 --slots 4 --seconds 15
    """
    from fmplex_tools.bench.engine import churn as scenario

    def measure(progress: Progress, noted: dict[str, Any]) -> Outcome:
        common = _common(repository, seconds, slots, rank, threads, seed)
        plan = scenario.ChurnPlan(
            **common,
            vfms=vfms,
            versions=versions,
            texts=texts,
            clients=clients,
            memory_mb=memory_mb,
        )
        outcome = scenario.churn(plan, progress, noted)
        for wrong in outcome.details["wrong"]:
            fail(wrong)
        return outcome

    conditions: dict[str, Any] = {"vfms": vfms, "versions": versions, "texts": texts, "clients": clients}
    conditions |= {
        "slots": slots,
        "memory_mb": memory_mb,
        "rank": rank,
        "seconds": seconds,
        "threads": threads,
        "seed": seed,
    }
    carry_out("churn", measure, conditions, json_file, plots_to)


def _common(source: Path, seconds: float, slots: int, rank: int, threads: int, seed: int) -> dict[str, Any]:
    """Of a `FleetPlan`."""
    plan: dict[str, Any] = {"source": source, "fm": FM, "seconds": seconds, "slots": slots, "rank": rank}
    return plan | {"threads": threads, "seed": seed}


def numbers_of(text: str) -> tuple[int, ...]:
    """``8,32,64``, ascending. Raises `InvalidInput`."""
    return tuple(sorted(numbers(text, "--counts", 1, MOST)))


COMMANDS = (fleet, slots, reload, churn)
