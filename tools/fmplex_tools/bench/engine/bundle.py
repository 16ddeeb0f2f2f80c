"""``fmplex bench engine bundle``: eight heads on one input, asked as one bundle, as eight requests, and one alone."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.progress import Progress

from fmplex_tools.bench.engine.command import (
    FM,
    REPOSITORY,
    Device,
    Dtype,
    JsonFile,
    PlotsTo,
    Repository,
    Seconds,
    Seed,
    Threads,
    carry_out,
)
from fmplex_tools.bench.engine.fleet import make_fleet
from fmplex_tools.bench.engine.fleet_server import machine, workplace
from fmplex_tools.bench.engine.lean import Answered, LeanClient, requests_for
from fmplex_tools.bench.engine.report import SERIES
from fmplex_tools.bench.engine.rounds import at_most, interleave, ratio
from fmplex_tools.bench.fair.arena import serve
from fmplex_tools.bench.fair.bench import Figure, Outcome

NAME = "all_of_them"
OUTPUTS = ("probabilities", "info")
"""Asked of every vFM, alone and in the bundle."""
BLOCK = 4
GOAL = 1.3
ONE, BUNDLE = "one request to one vFM", "bundle"


def bundle(
    vfms: Annotated[int, typer.Option(min=2, max=64, help="Heads in the bundle.")] = 8,
    tokens: Annotated[int, typer.Option(min=3, max=512, help="Of the row.")] = 32,
    dtype: Annotated[Dtype, typer.Option(help="Of the backbone.")] = "fp32",
    device: Device = "cpu",
    threads: Threads = 0,
    seconds: Seconds = 20.0,
    seed: Seed = 0,
    json_file: JsonFile = None,
    plots_to: PlotsTo = None,
    repository: Repository = REPOSITORY,
) -> None:
    """Latency and device time of a bundle over 8 vFMs with a head alone, for one row, against asking them apart.

    The three go by turns for --seconds: one request to one vFM; a request to each vFM, sent together, until the last
    answer; one request to the bundle. `probabilities` and `info` are asked for.

    Examples:

      fmplex bench engine bundle

      fmplex bench engine bundle --vfms 16 --tokens 128 --seconds 10
    """

    def measure(progress: Progress, noted: dict[str, Any]) -> Outcome:
        from fmplex_tools.tasks.manage import create_bundle

        line = progress.add_task("starting a server", total=1.0)
        settings = {"dtype": dtype, "engines": device, "threads": str(threads)}
        with workplace() as folder:
            made = folder / "repository"
            names = make_fleet(made, repository, FM, vfms, adapter=False, seed=seed, settings=settings)
            create_bundle(made, NAME, names)
            with serve(made, FM, [*names, NAME]) as arena, LeanClient(arena.url) as client:
                noted |= {"machine": machine(arena), "torch_threads": threads or noted["cores"]}
                progress.update(line, description="one row: a bundle and what it stands for")
                asked = Asked(client, names, tokens, seed)
                times = interleave(
                    asked.contenders(), seconds, on_tick=lambda part: progress.update(line, completed=part)
                )
                progress.update(line, description="stopping the server")
        outcome = Outcome(figures_of(times, asked.answers, vfms), {"seconds": times})
        outcome.details[SERIES] = {"ms": {name: [1e3 * t for t in found] for name, found in times.items()}}
        return outcome

    conditions = {"vfms": vfms, "tokens": tokens, "dtype": dtype, "device": device, "seconds": seconds, "seed": seed}
    carry_out("bundle", measure, conditions, json_file, plots_to)


def apart(vfms: int) -> str:
    """Name of the contender that asks each vFM by itself."""
    return f"{vfms} requests, sent together"


class Asked:
    """The three ways to ask, and every answer."""

    def __init__(self, client: LeanClient, names: list[str], tokens: int, seed: int) -> None:
        self._client, self._names = client, names
        each = [requests_for(name, tokens, seed, OUTPUTS) for name in names]
        outputs = [f"{name}_{output}" for name in names for output in OUTPUTS]
        self._batches = {
            ONE: itertools.cycle([[request] for request in each[0]]),
            apart(len(names)): itertools.cycle([list(requests) for requests in zip(*each, strict=True)]),
            BUNDLE: itertools.cycle([[request] for request in requests_for(NAME, tokens, seed, outputs)]),
        }
        self.answers: dict[str, list[Answered]] = {name: [] for name in self._batches}

    def contenders(self) -> dict[str, Callable[[], float]]:
        """By name: a block, and the median of its seconds."""
        return {name: self._asks(name) for name in self._batches}

    def _asks(self, name: str) -> Callable[[], float]:
        def ask() -> float:
            block = [self._client.ask_together(next(self._batches[name])) for _ in range(BLOCK)]
            self.answers[name] += block
            return statistics.median(answer.seconds for answer in block)

        return ask


def figures_of(times: dict[str, list[float]], answers: dict[str, list[Answered]], vfms: int) -> list[Figure]:
    """``times`` are medians of blocks, by contender."""
    p50 = {name: 1e3 * statistics.median(a.seconds for a in found) for name, found in answers.items()}
    device = {name: [a.device for a in found] for name, found in answers.items()}
    latency, cost = "latency", "device time"
    found = [Figure(latency, f"{name}, p50", p50[name], f"ms (of {len(answers[name])})") for name in times]
    found.append(at_most(latency, "bundle / one request", ratio(times[BUNDLE], times[ONE]), GOAL))
    found.append(at_most(latency, f"bundle / {vfms} requests", ratio(times[BUNDLE], times[apart(vfms)])))
    found += [Figure(cost, f"{name}, p50", 1e3 * statistics.median(device[name]), "ms") for name in times]
    found.append(at_most(cost, "bundle / one request", ratio(device[BUNDLE], device[ONE]), GOAL))
    found.append(at_most(cost, f"bundle / {vfms} requests", ratio(device[BUNDLE], device[apart(vfms)])))
    return found
