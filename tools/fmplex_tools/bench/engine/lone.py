"""``fmplex bench engine lone``: one row at a time through the whole server, against the bare forward pass."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.progress import Progress

from fmplex_tools.bench.engine.bare import Bare
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
    numbers,
)
from fmplex_tools.bench.engine.fleet import make_fleet
from fmplex_tools.bench.engine.fleet_server import workplace
from fmplex_tools.bench.engine.lean import Answered, LeanClient, requests_for
from fmplex_tools.bench.engine.report import SERIES
from fmplex_tools.bench.engine.rounds import Contender, at_most, interleave, ratio
from fmplex_tools.bench.fair.arena import serve
from fmplex_tools.bench.fair.bench import Figure, Outcome

BLOCK = 8
"""Requests, then forward passes, before the other side has its turn."""
RATIO_GOAL, MORE_GOAL_MS = 1.2, 1.5


def lone(
    lengths: Annotated[str, typer.Option(help="Tokens of the row, comma-separated; special tokens included.")] = (
        "8,32,128"
    ),
    dtype: Annotated[Dtype, typer.Option(help="Of the backbone.")] = "fp32",
    device: Device = "cpu",
    threads: Threads = 0,
    seconds: Seconds = 30.0,
    seed: Seed = 0,
    json_file: JsonFile = None,
    plots_to: PlotsTo = None,
    repository: Repository = REPOSITORY,
) -> None:
    """Latency of one request at a time over gRPC, against the forward pass of one row in a process of its own.

    The vFM has a LoRA (rank 8, query and value) and a linear head. Requests and forward passes go by turns, a few of
    each, for --seconds over all lengths; while one side runs, the other is idle. The difference is told apart by what
    `info` says: time in the queue, on the device, and the rest (gRPC, Triton, host, client).

    Examples:

      fmplex bench engine lone

      fmplex bench engine lone --lengths 32 --seconds 10 --dtype bf16
    """

    def measure(progress: Progress, noted: dict[str, Any]) -> Outcome:
        wanted = numbers(lengths, "--lengths", 3, 512)
        line = progress.add_task("starting a server and the bare backbone", total=1.0)
        settings = {"dtype": dtype, "engines": device, "threads": str(threads)}
        with workplace() as folder, Bare(repository / FM, dtype, device, threads) as bare:
            made = folder / "repository"
            (vfm,) = make_fleet(made, repository, FM, 1, seed=seed, settings=settings)
            noted |= bare.machine
            with serve(made, FM, [vfm]) as arena, LeanClient(arena.url) as client:
                progress.update(line, description="one row at a time")
                sides = {tokens: Side(client, bare, vfm, tokens, seed) for tokens in wanted}
                contenders: dict[str, Contender] = {}
                for tokens, side in sides.items():
                    contenders |= {f"served, {tokens} tokens": side.served, f"bare, {tokens} tokens": side.bare}
                times = interleave(contenders, seconds, on_tick=lambda part: progress.update(line, completed=part))
                progress.update(line, description="stopping the server")
        outcome = Outcome(details={"seconds": times})
        for tokens, side in sides.items():
            outcome.figures += figures_of(tokens, times, side.answers, side.passes)
        outcome.details[SERIES] = {"ms": {name: [1e3 * t for t in found] for name, found in times.items()}}
        return outcome

    conditions = {"dtype": dtype, "device": device, "seconds": seconds, "seed": seed}
    carry_out("lone", measure, conditions, json_file, plots_to)


class Side:
    """Both sides for one length: blocks of requests and blocks of forward passes, all of them kept."""

    def __init__(self, client: LeanClient, bare: Bare, vfm: str, tokens: int, seed: int) -> None:
        self._client, self._bare, self._tokens = client, bare, tokens
        self._requests = itertools.cycle(requests_for(vfm, tokens, seed))
        self.answers: list[Answered] = []
        self.passes: list[float] = []

    def served(self) -> float:
        """A block of requests; the median of their seconds."""
        block = [self._client.ask(next(self._requests)) for _ in range(BLOCK)]
        self.answers += block
        return statistics.median(answer.seconds for answer in block)

    def bare(self) -> float:
        """A block of forward passes; the median of their seconds."""
        # One at a time, so that the process sleeps and wakes between them as an engine does.
        block = [self._bare.run(1, self._tokens)[0] for _ in range(BLOCK)]
        self.passes += block
        return statistics.median(block)


def figures_of(
    tokens: int, times: dict[str, list[float]], answers: Sequence[Answered], passes: Sequence[float]
) -> list[Figure]:
    """The lines of one length: ``times`` are medians of blocks, by contender."""
    part = f"{tokens} tokens"
    ours, theirs = times[f"served, {part}"], times[f"bare, {part}"]
    p50, bare = (1e3 * statistics.median(found) for found in ([answer.seconds for answer in answers], passes))
    more = 1e3 * statistics.median(a - b for a, b in zip(ours, theirs, strict=True))
    queue = 1e3 * statistics.median(answer.queue for answer in answers)
    device = 1e3 * statistics.median(answer.device for answer in answers)
    rest = 1e3 * statistics.median(answer.seconds - answer.queue - answer.device for answer in answers)
    return [
        Figure(part, "bare forward pass, p50", bare, f"ms (of {len(passes)})"),
        Figure(part, "served, p50", p50, f"ms (of {len(answers)})"),
        at_most(part, "served / bare", ratio(ours, theirs), RATIO_GOAL),
        Figure(part, "served - bare", more, "ms", f"≤ {MORE_GOAL_MS:g} ms", more <= MORE_GOAL_MS),
        Figure(part, "of served: in the queue", queue, "ms"),
        Figure(part, "of served: batch on the device", device, f"ms ({device - bare:+.2f} ms to the bare pass)"),
        Figure(part, "of served: gRPC, Triton, host, client", rest, "ms"),
    ]
