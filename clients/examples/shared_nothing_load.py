"""Several processes, each with its own client, checking every answer: python clients/examples/shared_nothing_load.py

Bounded by --requests (per process) and --seconds, whichever comes first. Prints the rate and the latencies that the
callers saw.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from _checks import HTTP, REVIEWS, check, parser, run

from fmplex_client import Classification, Client, FMplexClientError


@dataclass
class Tally:
    """What one process saw."""

    latencies: list[float] = field(default_factory=list)
    """Seconds, one per request."""
    problems: list[str] = field(default_factory=list)
    """Wrong answers and errors, the first few."""
    started: float = 0.0
    ended: float = 0.0


def work(url: str, protocol: str, number: int, requests: int, seconds: float) -> Tally:
    """Ask one text at a time until the count or the time is used up."""
    tally = Tally(started=time.time())
    with Client(url, "grpc" if protocol == "grpc" else "http") as client:
        for i in range(requests):
            text, wanted = REVIEWS[(number + i) % len(REVIEWS)]
            begin = time.perf_counter()
            try:
                [answer] = client.predict("review_polarity", [text], expect=Classification)
            except FMplexClientError as error:
                tally.problems.append(f"process {number}, request {i}: {type(error).__name__}: {error}")
            else:
                if answer.label != wanted:
                    tally.problems.append(f"process {number}, request {i}: {text!r} is {wanted}, not {answer.label}")
            tally.latencies.append(time.perf_counter() - begin)
            if len(tally.problems) >= 5 or time.time() - tally.started > seconds:
                break
    tally.ended = time.time()
    return tally


def report(tallies: list[Tally]) -> None:
    """Print rate and latencies; end with exit code 1 where any answer was wrong or missing."""
    problems = [problem for tally in tallies for problem in tally.problems]
    latencies = np.array([latency for tally in tallies for latency in tally.latencies]) * 1e3
    elapsed = max(tally.ended for tally in tallies) - min(tally.started for tally in tallies)
    p50, p99 = np.percentile(latencies, [50, 99])
    print(
        f"{len(latencies)} requests by {len(tallies)} processes in {elapsed:.1f} s: "
        f"{len(latencies) / elapsed:.0f}/s, p50 {p50:.1f} ms, p99 {p99:.1f} ms"
    )
    check(not problems, "\n  ".join([f"{len(problems)} of {len(latencies)} answers", *problems[:5]]))


def main() -> None:
    """Ask, print, check."""
    arguments: argparse.ArgumentParser = parser(__doc__, HTTP)
    arguments.add_argument("--protocol", choices=("http", "grpc"), default="http")
    arguments.add_argument("--processes", type=int, default=4, choices=range(1, 65), metavar="1..64")
    arguments.add_argument("--requests", type=int, default=200, help="most requests of each process")
    arguments.add_argument("--seconds", type=float, default=20.0, help="longest time that each process asks")
    chosen = arguments.parse_args()
    # "spawn": a gRPC channel must not be copied into a forked child.
    with ProcessPoolExecutor(chosen.processes, multiprocessing.get_context("spawn")) as pool:
        futures = [
            pool.submit(work, chosen.url, chosen.protocol, number, chosen.requests, chosen.seconds)
            for number in range(chosen.processes)
        ]
        report([future.result() for future in futures])


if __name__ == "__main__":
    run(main)
