"""``fmplex bench engine saturated``: rows/s through the whole server, against full batches on the bare backbone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress

from fmplex_backend.errors import EngineFailure
from fmplex_tools.bench.engine.bare import Bare
from fmplex_tools.bench.engine.command import (
    FM,
    REPOSITORY,
    Device,
    JsonFile,
    PlotsTo,
    Repository,
    Seconds,
    Seed,
    Threads,
    carry_out,
    choices,
    numbers,
)
from fmplex_tools.bench.engine.cpu import Spent, spent, used_between
from fmplex_tools.bench.engine.fleet import make_fleet
from fmplex_tools.bench.engine.fleet_server import workplace
from fmplex_tools.bench.engine.report import SERIES
from fmplex_tools.bench.engine.rounds import at_least, ratio
from fmplex_tools.bench.fair.arena import Arena, serve
from fmplex_tools.bench.fair.bench import Figure, Outcome
from fmplex_tools.bench.fair.generator import POOL
from fmplex_tools.bench.fair.load import Load
from fmplex_tools.bench.fair.streams import FAILED, OK, REFUSED, Stream
from fmplex_tools.bench.stolen import undisturbed

FULL = 64
"""Rows of the bare backbone's batches."""
WAITING = 3 * FULL
"""Rows in flight at least, so that a full batch is always ready."""
GOAL = 0.9


@dataclass(frozen=True)
class Served:
    """A phase of load: seconds per row that was answered, and processor seconds of each process per row."""

    per_row: float
    cpu: Spent
    failed: int


@dataclass(frozen=True)
class Pair:
    """A served phase and the bare ones around it."""

    served: Served
    bare: float
    """Seconds per row."""
    stolen: float = 0.0
    """Part of the machine that its hypervisor took meanwhile, 0 to 1."""


@dataclass
class Setting:
    """What is measured of one dtype, and with what."""

    arena: Arena
    bare: Bare
    names: Sequence[str]
    tokens: int
    seconds: float
    seed: int

    def run_pair(self, vfms: int, rows: int) -> Pair:
        """A served phase between two bare ones. Raises `EngineFailure`."""
        before, served, after = self.run_bare(), self.run_served(vfms, rows), self.run_bare()
        return Pair(served, (before + after) / 2)

    def run_bare(self) -> float:
        """Seconds per row of full batches, of the whole phase."""
        times = self.bare.run(FULL, self.tokens, count=3, seconds=self.seconds / 2)
        return sum(times) / len(times) / FULL

    def run_served(self, vfms: int, rows: int) -> Served:
        """Requests of ``rows`` rows to ``vfms`` vFMs, as many in flight as saturate. Raises `EngineFailure`.

        From the first request to the last answer: requests of several rows to many vFMs are answered in bursts, so a
        window in the middle would count one burst more or less.
        """
        streams = [stream for name in self.names[:vfms] for stream in streams_for(name, self.tokens, rows, vfms)]
        with Load(self.arena.url, streams, seed=self.seed) as load:
            before, begun = spent(self.arena), load.start()
            time.sleep(self.seconds)
            driver = spent(self.arena)
            traffic = load.stop()
            after = spent(self.arena) | {"client": driver["client"]}
        asked = self.names[:vfms]
        answered = traffic.of(asked, OK)
        if not len(answered):
            reasons = "; ".join(traffic.failures) or f"no answers within {self.seconds:g} s; raise --seconds"
            raise EngineFailure(f"{vfms} vFMs, requests of {rows}: {reasons}")
        count = int(answered["rows"].sum())
        failed = len(traffic.of(asked, FAILED)) + len(traffic.of(asked, REFUSED))
        return Served((answered["ended"].max() - begun) / count, used_between(before, after, count), failed)


def streams_for(name: str, tokens: int, rows: int, vfms: int) -> list[Stream]:
    """The load on one of ``vfms`` vFMs; no two requests under way at a time have the same text.

    An engine runs rows that are the same only once. A closed loop of a stream sends every ``in_flight``-th of `POOL`
    requests, so where ``in_flight`` is a power of two no two loops share one; more streams have texts of their own.
    """
    wanted = -(-WAITING // (rows * vfms))
    in_flight = min(POOL, 1 << (wanted - 1).bit_length())
    return [Stream(name, (tokens,), rows, in_flight=in_flight)] * -(-wanted // in_flight)


def saturated(
    vfms: Annotated[str, typer.Option(help="Numbers of vFMs asked, comma-separated.")] = "1,16,64",
    requests: Annotated[str, typer.Option(help="Rows in a request, comma-separated.")] = "1,8",
    tokens: Annotated[int, typer.Option(min=3, max=512, help="Of each row.")] = 32,
    dtypes: Annotated[str, typer.Option(help="Of the backbone, comma-separated.")] = "fp32,bf16",
    rounds: Annotated[int, typer.Option(min=1, max=100, help="Times through everything.")] = 3,
    device: Device = "cpu",
    threads: Threads = 0,
    seconds: Seconds = 6.0,
    seed: Seed = 0,
    json_file: JsonFile = None,
    plots_to: PlotsTo = None,
    repository: Repository = REPOSITORY,
) -> None:
    """Rows/s at saturation over gRPC, of 1, 16 and 64 vFMs, as a part of what full batches give on the bare backbone.

    Each vFM has a LoRA (rank 8, query and value) and a linear head. Phases of load of --seconds are between phases of
    the bare backbone, half as long, in a process of its own with an engine's threads and environment; the server is
    idle then. Also tells the processor time that each process takes per row.

    Examples:

      fmplex bench engine saturated

      fmplex bench engine saturated --vfms 64 --requests 8 --dtypes fp32 --rounds 1 --seconds 3
    """

    def measure(progress: Progress, noted: dict[str, Any]) -> Outcome:
        counts, sizes = numbers(vfms, "--vfms", 1, 1024), numbers(requests, "--requests", 1, FULL)
        outcome = Outcome(details={SERIES: {}, "seconds_per_row": {}})
        for dtype in choices(dtypes, "--dtypes", ("fp32", "bf16")):
            line = progress.add_task(f"{dtype}: starting a server and the bare backbone", total=rounds)
            with ExitStack() as stack:
                bare = stack.enter_context(Bare(repository / FM, dtype, device, threads))
                noted |= bare.machine
                made: Path = stack.enter_context(workplace()) / "repository"
                settings = {"dtype": dtype, "engines": device, "threads": str(threads)}
                names = make_fleet(made, repository, FM, max(counts), seed=seed, settings=settings)
                arena = stack.enter_context(serve(made, FM, names))
                setting = Setting(arena, bare, names, tokens, seconds, seed)
                _run(setting, dtype, counts, sizes, rounds, outcome, progress, line)
                progress.update(line, description=f"{dtype}: stopping the server")
            progress.remove_task(line)
        return outcome

    conditions = {"tokens": tokens, "rounds": rounds, "device": device, "seconds": seconds, "seed": seed}
    carry_out("saturated", measure, conditions, json_file, plots_to)


def _run(
    setting: Setting,
    dtype: str,
    counts: Sequence[int],
    sizes: Sequence[int],
    rounds: int,
    outcome: Outcome,
    progress: Progress,
    line: Any,
) -> None:
    """All phases of one dtype; a served phase is compared with the mean of the bare ones on either side of it.

    What the hypervisor took too much of the machine from is measured again.
    """
    cases = [(rows, count) for rows in sizes for count in counts]
    found: dict[tuple[int, int], list[Pair]] = {case: [] for case in cases}
    for number in range(rounds):
        for rows, count in cases[number % len(cases) :] + cases[: number % len(cases)]:
            progress.update(line, description=f"{dtype}, round {number + 1}: {count} vFMs, requests of {rows}")
            stolen, pair = undisturbed(partial(setting.run_pair, count, rows))[0]
            found[rows, count].append(replace(pair, stolen=stolen))
            progress.advance(line, 1 / len(cases))
    for (rows, count), pairs in found.items():
        outcome.figures += figures_of(dtype, rows, count, pairs)
        name = f"{dtype}, {count} vFMs, requests of {rows}"
        outcome.details["seconds_per_row"][name] = [(pair.served.per_row, pair.bare) for pair in pairs]
        drawn = outcome.details[SERIES].setdefault("served of bare", {})
        drawn[name] = [pair.bare / pair.served.per_row for pair in pairs]


def figures_of(dtype: str, rows: int, count: int, pairs: Sequence[Pair]) -> list[Figure]:
    """The lines of one case."""
    part = f"{dtype}, requests of {rows}"
    served, bare = [pair.served.per_row for pair in pairs], [pair.bare for pair in pairs]
    vfms = f"{count} vFM" + "s" * (count > 1)
    failed = sum(pair.served.failed for pair in pairs)
    cpu = {
        role: 1e6 * sum(pair.served.cpu.get(role, 0.0) for pair in pairs) / len(pairs) for role in pairs[0].served.cpu
    }
    told = ", ".join(f"{role} {value:,.0f}" for role, value in cpu.items())
    found = [
        Figure(part, f"{vfms}: rows/s", 1 / min(served), f"(bare {1 / min(bare):,.0f})"),
        at_least(part, f"{vfms}: served / bare", ratio(bare, served), GOAL),
        Figure(part, f"{vfms}: CPU per row", sum(cpu.values()), f"µs ({told})"),
        Figure(part, f"{vfms}: stolen by the hypervisor", 100 * max(pair.stolen for pair in pairs), "% at most"),
    ]
    if failed:
        found.append(Figure(part, f"{vfms}: failed requests", failed, "", "0", False))
    return found
