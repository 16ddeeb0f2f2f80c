"""The cluster of the benchmark: what private copies are simulated to do, and what is searched for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.progress import Progress

from fmplex_backend.scheduling.cost import CostModel
from fmplex_backend.scheduling.interface import VfmPolicy
from fmplex_backend.scheduling.policies import make_queue
from fmplex_tools.bench.cluster.bench import CURVES, ClusterPlan, cluster
from fmplex_tools.bench.cluster.copies import CLOSE, _simulated, most_copies
from fmplex_tools.bench.cluster.picture import draw
from fmplex_tools.bench.cluster.world import OnDevice, gpu_world, kind_to_copies, measured_world
from fmplex_tools.bench.simulate.device import Device
from fmplex_tools.bench.simulate.together import Part, together
from fmplex_tools.bench.simulate.trace import Arrival
from fmplex_tools.planner.search import largest

MB = 10**6
COST = CostModel(alpha=0.01, beta=1e-4, gamma=1e-4)
ONE = OnDevice("one", COST, {16: 1.0}, weights=90 * MB, replica=300 * MB, vfm=MB, copy=300 * MB)


@given(st.integers(0, 3000), st.integers(0, 3000))
def test_the_largest_that_is_good(most: int, bound: int) -> None:
    tried = []

    def good(count: int) -> bool:
        tried.append(count)
        return count <= bound

    found = largest(good, most, CLOSE)
    best = min(most, bound)
    assert found <= best <= found * 1.03 + 1
    assert all(0 < count <= most for count in tried)
    assert largest(good, most) == best
    assert largest(good) == bound


def test_memory_limits_copies_that_have_little_to_do() -> None:
    world = measured_world((ONE,), 3000 * MB)
    found = most_copies(world, "shared", rate=0.01, p99=1.0)
    assert (found.count, found.limit) == (10, "memory")


def test_time_limits_copies_that_have_much_to_do() -> None:
    """A row by itself takes 11.6 ms: 8 copies with 10 a second each fill a device; more do where rows of one merge."""
    world = measured_world((ONE,), 10**12)
    shared, parts = (most_copies(world, how, rate=10, p99=0.2) for how in ("shared", "partitions"))
    assert shared.limit == parts.limit == "p99"
    assert 8 <= shared.count <= 20
    assert parts.count < shared.count
    assert most_copies(kind_to_copies(world), "shared", rate=10, p99=0.2).count > 2 * shared.count


def test_a_copy_alone_takes_what_a_row_takes() -> None:
    ((_, latencies),) = _simulated(measured_world((ONE,), 10**12), "shared", 1, rate=0.1, seed=0)
    assert np.median(latencies) == pytest.approx(COST.alpha + COST.work(16))
    parted = _simulated(measured_world((ONE,), 10**12), "partitions", 5, rate=0.1, seed=0)
    assert len(parted) == 5
    assert np.median(parted[0][1]) == pytest.approx(5 * (COST.alpha + COST.work(16)))


def test_batches_of_two_fms_share_the_device() -> None:
    """Both begin at 0: until the shorter one's end each has half of the device, then the longer one all of it."""
    long = replace(COST, alpha=0.05)
    parts = [
        Part(make_queue("fair", 64, cost), Device(cost), {name: VfmPolicy(1.0, 512)})
        for name, cost in (("short", COST), ("long", long))
    ]
    short_alone, long_alone = (cost.batch([16], 1) for cost in (COST, long))
    done = together(parts, [Arrival(0.0, "short", (16,)), Arrival(0.0, "long", (16,)), Arrival(9.0, "short", (16,))])
    assert done.latencies["short"] == pytest.approx([2 * short_alone, short_alone])
    assert done.latencies["long"] == pytest.approx([short_alone + long_alone])
    assert not done.rejected


def test_a_small_cluster(tmp_path: Path) -> None:
    gpu = gpu_world((ONE,))
    plan = ClusterPlan(devices=1, rates=(100.0,), p99_ms=60.0)
    outcome = cluster(plan, [gpu], gpu.name, Progress(disable=True))
    (vfms,), (copies,), (parts,) = outcome.details[CURVES][gpu.name].values()
    assert vfms > copies > parts
    assert outcome.figures[-1].value == vfms / copies
    assert outcome.figures[-1].good is (vfms >= 12 * copies)
    assert draw(outcome, tmp_path).stat().st_size > 5000
