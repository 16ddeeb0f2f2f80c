"""Measuring what batches cost on this device: the points to which the host fits its cost model.

The grid spans rows and lengths with a bare vFM, and the number of distinct adapters. Its batches go through a `Worker`
like any others and are timed as any others are; the worker is one of its own, so nothing of it stays.
"""

from __future__ import annotations

import heapq
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from fmplex_backend.arrays import Array
from fmplex_backend.backbones.base import Backbone
from fmplex_backend.backbones.facts import BackboneFacts
from fmplex_backend.engine.worker import Worker
from fmplex_backend.messages import DeviceFacts, LoadGeneration, Measure, Measured, Point, RunBatch
from fmplex_backend.processor import processor_name
from fmplex_backend.repository.artifact import Artifact, BackboneRef
from fmplex_backend.repository.packed import VersionContent, pack
from fmplex_backend.repository.peft_checkpoint import AdapterWeights

ROWS_STEP = 4
ADAPTERS = (1, 4, 16)
ADAPTER_LENGTHS = 2
"""How many of the lengths, the least ones, adapters are measured at."""
RANK = 8
REPEATS = 5
"""Most runs of one shape."""
WARM_UP, WARM_UP_TOKENS = 3, 128
"""Runs of two shapes of at most so many tokens, before all others, that do not count."""
LONGEST = 0.1
"""Part of the budget: a shape that takes longer is left out."""
_TARGETS = frozenset(("query", "value", "q", "v", "q_proj", "v_proj", "q_lin", "v_lin", "query_key_value", "Wqkv"))
"""Last parts of the names of layers that adapters usually touch; where there are none, all are taken."""
_BARE = 0
"""Number of the generation without an adapter; those with one are 1, 2, …"""


@dataclass(frozen=True, order=True)
class Shape:
    """A batch to measure: ``adapters`` distinct vFMs with an adapter each, or for 0 one vFM without."""

    tokens: int
    """Padding included: rows times length. First, so that shapes sort by their work."""
    rows: int
    length: int
    adapters: int

    @property
    def generations(self) -> list[int]:
        """Of each row."""
        return [1 + row % self.adapters if self.adapters else _BARE for row in range(self.rows)]


def grid(max_rows: int, lengths: Sequence[int]) -> list[Shape]:
    """The shapes to measure, those with the least work first; ``lengths`` ascend."""
    rows = {ROWS_STEP**i for i in range(max_rows.bit_length()) if ROWS_STEP**i < max_rows} | {max_rows}
    bare = {(n, length, 0) for n in rows for length in lengths}
    adapted = {
        (n, length, adapters)
        for adapters in ADAPTERS
        for n in (adapters, adapters * ROWS_STEP)
        for length in lengths[:ADAPTER_LENGTHS]
        if n <= max_rows
    }
    return sorted(Shape(n * length, n, length, adapters) for n, length, adapters in bare | adapted)


def sample(run: Callable[[Shape], float], shapes: Iterable[Shape], budget: float) -> dict[Shape, list[float]]:
    """Run ``shapes``, ascending, as often as ``budget`` seconds allow: shape → the seconds that each run took.

    Every shape runs once, but for those that would take too long by what was measured before; then always the one
    that has had the least time, so that a slow moment of the machine falls on many shapes and not on one.
    Infinite seconds, for a shape that does not fit the device, end the first round.
    """
    times: dict[Shape, list[float]] = {}
    left = budget
    for shape in shapes:
        if times:
            largest = max(times)
            expected = times[largest][0] * max(1.0, shape.tokens / largest.tokens)
            if expected > min(left, LONGEST * budget):
                continue
        if (seconds := run(shape)) == math.inf:
            break
        times[shape] = [seconds]
        left -= seconds
    heap = [(runs[0], shape) for shape, runs in times.items()]
    heapq.heapify(heap)
    while heap:
        spent, shape = heapq.heappop(heap)
        runs = times[shape]
        if min(runs) > left:
            continue
        runs.append(seconds := run(shape))
        left -= seconds
        if len(runs) < REPEATS:
            heapq.heappush(heap, (spent + seconds, shape))
    return times


def measure(backbone: Backbone, device: str, message: Measure) -> Measured:
    """Carry out ``message``. Shapes for which the device has no memory are left out."""
    started = time.perf_counter()
    times = _times(backbone, device, message)
    if device != "cpu":
        torch.cuda.empty_cache()
    if not times:
        raise MemoryError(f"{device} has no memory for a batch of one row")
    points = [Point(s.rows, s.length, max(1, s.adapters), min(runs)) for s, runs in times.items()]
    return Measured(points, time.perf_counter() - started)


def _times(backbone: Backbone, device: str, message: Measure) -> dict[Shape, list[float]]:
    shapes = grid(message.max_rows, backbone.lengths)
    worker = Worker(backbone, device, max(ADAPTERS))

    def run(shape: Shape) -> float:
        rows = [backbone.sample(row, shape.length) for row in range(shape.rows)]
        if device != "cpu":
            torch.cuda.synchronize(device)  # what is older is not on this batch's account
        try:
            return worker.run(RunBatch(0, shape.generations, rows)).seconds
        except torch.OutOfMemoryError:
            return math.inf

    try:
        _load(worker, max(shape.adapters for shape in shapes))
        small = [shape for shape in shapes if shape.tokens <= WARM_UP_TOKENS] or shapes[:1]
        for _ in range(WARM_UP):
            for shape in (small[0], small[-1]):
                run(shape)
        return sample(run, shapes, message.seconds)
    finally:
        worker.close()


def _load(worker: Worker, adapters: int) -> None:
    """Load generation `_BARE` and so many with an adapter: the same weights, but each in slots of its own."""
    facts = worker.backbone.facts
    with tempfile.TemporaryDirectory() as folder:
        for numbers, has_adapter in (([_BARE], False), (range(1, adapters + 1), True)):
            path = Path(folder) / f"{has_adapter}.safetensors"
            pack(_vfm(facts, has_adapter), path)
            for number in numbers:
                loaded = worker.load(LoadGeneration(number, "measuring", 1, str(path)))
                if loaded.error is not None:
                    raise RuntimeError(f"cannot measure: {loaded.error}")


def _vfm(facts: BackboneFacts, has_adapter: bool) -> VersionContent:
    artifact = Artifact(
        kind="classification",
        backbone=BackboneRef(name=facts.spec, fingerprint=facts.fingerprint),
        labels=("no", "yes"),
        adapter=has_adapter,
    )
    rng = np.random.default_rng(0)

    def random(*shape: int) -> Array:
        return rng.standard_normal(shape, np.float32) * np.float32(0.01)

    layers = {name: size for name, size in facts.layers.items() if name.rpartition(".")[2] in _TARGETS} or facts.layers
    adapter = AdapterWeights(
        {name: random(RANK, n_in) for name, (_, n_in) in layers.items()},
        {name: random(n_out, RANK) for name, (n_out, _) in layers.items()},
    )
    head = {"weight": random(2, facts.hidden_size), "bias": random(2)}
    return VersionContent(artifact, adapter if has_adapter else None, head, 2)


def device_facts(device: str) -> DeviceFacts:
    """What ``device`` is."""
    software = f"torch {torch.__version__}, transformers {version('transformers')}"
    if device == "cpu":
        return DeviceFacts(processor_name(), torch.get_num_threads(), software)
    return DeviceFacts(torch.cuda.get_device_name(device), 0, software)
