"""How the fault benchmarks count: what is flat, what is bounded, what a refusal costs, which failures are excused."""

from __future__ import annotations

import asyncio
import mmap
import os
import random
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest

from fmplex_tools.bench.engine.churn_chaos import Placed
from fmplex_tools.bench.fair.bench import Figure, Phase
from fmplex_tools.bench.fair.streams import OK, REFUSED, REQUEST, ROW, Stream, Traffic
from fmplex_tools.bench.faults.killer import Killer
from fmplex_tools.bench.faults.overload import Measured, bounded, cost_of_refusals
from fmplex_tools.bench.faults.own_memory import own_bytes
from fmplex_tools.bench.faults.samples import CLIENT, SERVER, Held, Sample, as_data, medians
from fmplex_tools.bench.faults.soak import SoakErrors
from fmplex_tools.bench.faults.soak_report import FEW, flatness
from fmplex_tools.top.scrape import FmScrape


def sample(at: float, *, memory: float = 100.0, threads: int = 10, seconds: float = 0.0, segments: int = 3) -> Sample:
    held = Held(memory, threads, 20, 1, seconds)
    return Sample(at, dict.fromkeys((*SERVER, CLIENT), held), segments)


def missed(figures: list[Figure]) -> set[str]:
    return {figure.name for figure in figures if figure.good is False}


def test_flat_is_told_from_what_grows() -> None:
    flat = [sample(at, memory=100 + at % 2, threads=10 + at % 3) for at in range(60)]
    assert not missed(flatness(flat))
    assert missed(flatness([sample(at, memory=100 + at / 4) for at in range(60)])) == {
        f"memory of {role}" for role in SERVER
    }
    grown = [sample(at, threads=10 + at // 30, segments=3 + at // 10) for at in range(60)]
    assert not missed(flatness(grown)), f"{FEW} more are no leak"
    leaking = [sample(at, threads=10 + at // 30 * (FEW + 1), segments=3 + at // 5) for at in range(60)]
    assert missed(flatness(leaking)) == {"threads more", "segments of shared memory more"}


def test_the_warm_up_is_no_growth() -> None:
    warming = [sample(at, memory=min(200, 20 * at)) for at in range(60)]
    assert medians(warming, lambda one: one.server.memory) == (800, 800)
    assert not missed(flatness(warming))
    assert not missed(bounded(warming + warming[-1:] * 60))
    assert missed(bounded([sample(at, memory=100 + at) for at in range(60)]))


def test_samples_as_plain_data() -> None:
    [first, second] = as_data([sample(5.0), sample(15.25, segments=4)])
    assert (first["at"], second["at"], second["segments"]) == (0, 10.25, 4)
    assert second["host"] == {"memory": 100.0, "threads": 10, "files": 20, "processes": 1, "seconds": 0.0}


def measured(spent: float, answered: int, refused: int) -> Measured:
    """Ten seconds in which each role used ``spent``."""
    ends = np.linspace(0, 10, answered + refused)
    outcomes = [OK] * answered + [REFUSED] * refused
    requests = np.array([(0, 0, 0, at, 8, outcome) for at, outcome in zip(ends, outcomes, strict=True)], REQUEST)
    traffic = Traffic((Stream("a"),), requests, np.empty(0, ROW))
    phase = Phase(traffic, 0.0, 10.0, FmScrape(), FmScrape())
    return Measured(phase, [sample(0.0, seconds=5.0), sample(10.0, seconds=5.0 + spent)], 0.0)


def test_what_a_refusal_costs_is_what_answers_do_not_explain() -> None:
    saturated = [measured(1.0, 100, 0), measured(3.0, 100, 0)]  # 20 ms an answer
    found = cost_of_refusals(saturated, measured(2.5, 100, 1000), ["a"])
    assert found == pytest.approx({"tritonserver": 500, "host": 500, CLIENT: 500})
    assert cost_of_refusals(saturated, measured(2.5, 100, 0), ["a"]) == {}


class Failed:
    """As much of an error of gRPC as is looked at."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        self.code, self.details = lambda: code, lambda: details


FULL = Failed(grpc.StatusCode.UNAVAILABLE, "vFM 'a': no room for 6 more rows …; retry in 20 ms")


@pytest.mark.parametrize(
    ("error", "sent", "excused"),
    [
        (FULL, 90.0, True),
        (FULL, 110.0, False),
        (Failed(grpc.StatusCode.UNAVAILABLE, "vFM 'a': no room for 6 more rows"), 90.0, False),
        (Failed(grpc.StatusCode.INTERNAL, "engine died"), 90.0, False),
    ],
)
def test_a_full_queue_is_excused_in_a_flood_alone(error: Failed, sent: float, excused: bool) -> None:
    errors = SoakErrors(flooded={"a": 100.0})
    errors.note(error, Placed(0, "a", port=0, versions={1}), None, sent)
    assert (errors.allowed.total(), errors.others.total()) == (int(excused), int(not excused))


async def test_a_recovery_ends_with_an_answer_to_what_was_asked_after_the_fault() -> None:
    with subprocess.Popen(["sleep", "60"]) as engine:
        made: Any = SimpleNamespace(status=lambda: {"engine_pids": [None, engine.pid]})
        killer, before = Killer(made), 0.0
        fault = asyncio.create_task(killer.fault("killed", random.Random(0)))
        while engine.poll() is None:
            killer.answered(before)
            await asyncio.sleep(0.01)
        assert not fault.done()
        killer.answered(asyncio.get_running_loop().time() + 60)
        await fault
    assert list(killer.recoveries) == ["killed"]
    assert [figure.name for figure in killer.figures()] == ["p50 of 1", "p99", "killed"]


def test_memory_is_what_a_process_has_taken_and_not_what_it_maps(tmp_path: Path) -> None:
    file = tmp_path / "library"
    file.write_bytes(bytes(8 << 20))
    before = own_bytes(os.getpid())
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert sum(mapped[:: mmap.PAGESIZE]) == 0, "every page is there"
        assert own_bytes(os.getpid()) - before < 4 << 20
    # Not from the heap: what this process has freed before may be given out again.
    before = own_bytes(os.getpid())
    with mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as taken:
        taken.write(b"x" * len(taken))
        assert own_bytes(os.getpid()) - before > 32 << 20
