"""CUDA graphs: the backbone's forward pass as one launch, for every mix of adapters.

On a GPU a small batch costs mostly the launches of its kernels, some hundreds of them; a graph replays them at once.

1. A graph has one shape, so there is one for each **bucket** of rows and length, and a batch is padded to the next.
2. The slots of a batch's rows are an *input* of the graph, like its tokens: it works on every stack of the bank for
   every row, and who has nothing in a stack reads its neutral entry 0. For batches without adapters there is a graph
   without any of that.
3. A graph is captured when its bucket comes up for the second time, and only used if it then answers as the plain
   forward pass does. Stacks that are new, or have moved, end all graphs that knew the old ones.
4. What a graph cannot do, prompts and shapes beyond the buckets, is run plainly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from fmplex_backend.adapters.bank import AdapterBank
from fmplex_backend.backbones.base import Backbone, Features

ROWS = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128)
LENGTHS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""The scheduler's length classes, and the longest that most encoders take."""
WARM_UP = 2
TOLERANCE = 2e-2
"""A graph may differ from the plain forward pass by so much of the largest value (kernels differ with padding)."""


class Recording(Protocol):
    """A captured forward pass."""

    def replay(self) -> None:
        """Do it again, with what is in the static inputs now."""


Capture = Callable[[Callable[[], Features]], tuple[Recording, Features]]
"""Records a forward pass; the features are the static outputs."""


@dataclass(frozen=True)
class _Bucket:
    rows: int
    length: int
    adapted: bool


@dataclass(frozen=True)
class _Graph:
    recording: Recording
    inputs: Mapping[str, Tensor]
    slots: Tensor
    features: Features


class Graphs:
    """Graphs of one backbone and bank, by bucket. Not thread-safe."""

    def __init__(
        self, backbone: Backbone, bank: AdapterBank, device: str, log: Callable[[str], None], capture: Capture
    ) -> None:
        self._backbone, self._bank, self._device, self._log, self._capture = backbone, bank, device, log, capture
        self._graphs: dict[_Bucket, _Graph | None] = {}
        """None where a graph does not answer as it must."""
        self._seen: Counter[_Bucket] = Counter()
        self._layout = bank.layout

    def forward(self, inputs: Mapping[str, Tensor], generations: Sequence[int | None]) -> Features | None:
        """Hidden states of the batch, valid until the next call; None where it has to be run plainly.

        ``inputs``: [n, t] each, in host memory. ``generations``: of each row, None for the bare backbone.
        """
        if self._layout != self._bank.layout:
            self._graphs.clear()
            self._layout = self._bank.layout
        adapted = any(generation is not None for generation in generations)
        bucket = bucket_of(*next(iter(inputs.values())).shape, adapted=adapted)
        if bucket is None or bucket.length > self._backbone.facts.max_length or self._bank.has_prompt(generations):
            return None
        self._seen[bucket] += 1
        if bucket not in self._graphs:
            if self._seen[bucket] < 2:
                return None
            wanted = self._plainly(inputs, generations)
            if not _sound(wanted).any():
                return None  # nothing to compare a graph with: another batch will do
            self._graphs[bucket] = self._record(bucket, inputs, generations, wanted)
        graph = self._graphs[bucket]
        return None if graph is None else self._replay(graph, inputs, generations)

    def _record(
        self, bucket: _Bucket, inputs: Mapping[str, Tensor], generations: Sequence[int | None], wanted: Tensor
    ) -> _Graph | None:
        """None where it cannot be captured, or answers otherwise than ``wanted``."""
        shape = (bucket.rows, bucket.length)
        static = {name: torch.zeros(shape, dtype=x.dtype, device=self._device) for name, x in inputs.items()}
        slots = torch.zeros(bucket.rows, dtype=torch.int64, device=self._device)
        self._fill(static, slots, inputs, generations)

        def run() -> Features:
            if not bucket.adapted:
                return self._backbone.forward(static)
            with self._bank.every_slot(slots):
                return self._backbone.forward(static)

        try:
            for _ in range(WARM_UP):
                run()
            recording, features = self._capture(run)
        except RuntimeError as error:  # e.g. a backbone that looks at its data on the way
            self._log(f"no CUDA graph for {shape[0]} rows of {shape[1]}, they are run plainly: {error}")
            return None
        graph = _Graph(recording, static, slots, features)
        off = _difference(self._replay(graph, inputs, generations), wanted)
        if off > TOLERANCE:
            self._log(f"the CUDA graph for {shape[0]} rows of {shape[1]} is off by {off:.3g}, they are run plainly")
            return None
        return graph

    def _plainly(self, inputs: Mapping[str, Tensor], generations: Sequence[int | None]) -> Tensor:
        """Hidden states of the batch, without a graph; 0 at padding."""
        with self._bank.batch(generations):
            return _of_tokens(self._backbone.forward({name: x.to(self._device) for name, x in inputs.items()}))

    def _replay(self, graph: _Graph, inputs: Mapping[str, Tensor], generations: Sequence[int | None]) -> Features:
        rows, length = next(iter(inputs.values())).shape
        self._fill(graph.inputs, graph.slots, inputs, generations)
        graph.recording.replay()
        features = graph.features
        pooler = features.pooler_output
        return Features(
            features.hidden[:rows, :length],
            graph.inputs["attention_mask"][:rows, :length],
            {name: tensor[:rows, :length] for name, tensor in graph.inputs.items()},
            None if pooler is None else pooler[:rows],
        )

    def _fill(
        self,
        static: Mapping[str, Tensor],
        slots: Tensor,
        inputs: Mapping[str, Tensor],
        generations: Sequence[int | None],
    ) -> None:
        for name, tensor in inputs.items():
            rows, length = tensor.shape
            static[name].zero_()
            static[name][:rows, :length].copy_(tensor, non_blocking=True)
        static["attention_mask"][len(generations) :, 0] = 1  # a row without any position would be no number
        slots.zero_()
        slots[: len(generations)].copy_(self._bank.slots_of(generations), non_blocking=True)


def _of_tokens(features: Features) -> Tensor:
    return features.hidden.masked_fill(features.mask.unsqueeze(-1) == 0, 0)


def _sound(hidden: Tensor) -> Tensor:
    """Of each row, whether it is all numbers: a row whose adapter spoils it says nothing of its neighbours' graph."""
    return hidden.isfinite().flatten(1).all(1)


def _difference(features: Features, wanted: Tensor) -> float:
    """The largest of any sound row, as a fraction of the row's own largest value: a huge row hides no other's."""
    off, largest = (x.abs().amax((1, 2)) for x in (_of_tokens(features) - wanted, wanted))
    return float((off / largest)[_sound(wanted)].nan_to_num(torch.inf).max())


def bucket_of(rows: int, length: int, *, adapted: bool) -> _Bucket | None:
    """The least bucket that holds such a batch; None where it is too large for any."""
    wide = next((n for n in ROWS if n >= rows), None)
    long = next((n for n in LENGTHS if n >= length), None)
    return None if wide is None or long is None else _Bucket(wide, long, adapted)


def cuda_capture(run: Callable[[], Features]) -> tuple[Recording, Features]:
    """Capture ``run`` on the current device, in a memory pool that all graphs share."""
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=_pool()):
        features = run()
    return graph, features


_shared_pool: list[Any] = []


def _pool() -> Any:
    if not _shared_pool:
        _shared_pool.append(torch.cuda.graph_pool_handle())
    return _shared_pool[0]
