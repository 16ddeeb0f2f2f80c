"""Who takes part in `mixed`: the bare backbone, our worker with ever more adapters, PEFT, a pass per adapter."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fmplex_backend.arrays import Array
from fmplex_backend.backbones.base import Backbone
from fmplex_backend.engine.worker import Worker
from fmplex_backend.messages import BatchDone, RunBatch, Tokens
from fmplex_tools.bench.engine.adapters import (
    BARE,
    MORE_BARE,
    AdapterSpec,
    collated,
    load_bare,
    load_peft,
    peft_forward,
    peft_model,
    random_rows,
)
from fmplex_tools.bench.engine.rounds import Contender

PLAIN = "plain forward of the backbone"
BARE_VFM = "1 bare vFM"
PEFT = "PEFT, mixed batch"
BY_ADAPTER = "a pass per adapter"
COUNTS = (1, 4, 16, 64)


def bare_vfms(count: int) -> str:
    """Name of the contender with so many vFMs without an adapter."""
    return BARE_VFM if count == 1 else f"{count} bare vFMs"


def adapters(count: int) -> str:
    """Name of the contender with so many distinct adapters."""
    return f"{count} adapter" + "s" * (count > 1)


class Field:
    """One kind of adapter, the same ones everywhere, and all that run it. Use `close` when done."""

    def __init__(
        self, backbone: Backbone, plain: Backbone, spec: AdapterSpec, rows: int, tokens: int, seed: int
    ) -> None:
        """``backbone`` is the worker's; ``plain``, the same one, is never hooked."""
        self._plain, self._device = plain, backbone.device
        self.rows = random_rows(plain.model, rows, tokens, seed)
        self.counts = tuple(sorted({min(count, rows) for count in COUNTS}))
        self.most = self.counts[-1]
        self._peft = peft_model(plain, spec, self.most, seed)
        self.worker = Worker(backbone, backbone.device, self.most)

    def load(self, folder: Path) -> None:
        """Load the adapters and as many bare vFMs into the worker; ``folder`` is for the files between."""
        load_peft(self.worker, self._peft, folder)
        load_bare(self.worker, folder)
        for number in range(self.most):
            load_bare(self.worker, folder, MORE_BARE + number)

    def close(self) -> None:
        """Leave the backbone as it was."""
        self.worker.close()

    def generations(self, count: int, first: int = BARE + 1) -> list[int]:
        """Of each row, ``count`` distinct ones by turns."""
        return [first + row % count for row in range(len(self.rows))]

    def contenders(self) -> dict[str, Contender]:
        """By name; all do the work of the whole batch, from token ids to vectors."""
        found: dict[str, Contender] = {PLAIN: self._run_plain}
        for count in {1, self.most}:
            bare = self.generations(count, MORE_BARE) if count > 1 else [BARE] * len(self.rows)
            found[bare_vfms(count)] = self._worker_runs(bare)
        for count in self.counts:
            found[adapters(count)] = self._worker_runs(self.generations(count))
        found[BY_ADAPTER] = self._run_by_adapter
        found[PEFT] = self._run_peft
        return found

    def _worker_runs(self, generations: list[int]) -> Contender:
        batch = RunBatch(0, generations, self.rows)

        def run() -> float:
            begun = time.perf_counter()
            self.worker.run(batch)
            return time.perf_counter() - begun

        return run

    def _run_plain(self) -> float:
        begun = time.perf_counter()
        with torch.inference_mode():
            self._plain.forward(collated(self._plain, self.rows))
        return self._since(begun)

    def _run_peft(self) -> float:
        begun = time.perf_counter()
        self.peft_hidden()
        return self._since(begun)

    def _run_by_adapter(self) -> float:
        begun = time.perf_counter()
        run_apart(self.worker, self.generations(self.most), self.rows)
        return time.perf_counter() - begun

    def _since(self, begun: float) -> float:
        if self._device != "cpu":
            torch.cuda.synchronize(self._device)
        return time.perf_counter() - begun

    def peft_hidden(self) -> torch.Tensor:
        """What PEFT makes of the batch with all adapters: [rows, tokens, hidden]."""
        with torch.inference_mode():
            inputs = collated(self._plain, self.rows)
            chosen = [generation - BARE - 1 for generation in self.generations(self.most)]
            return peft_forward(self._peft, inputs, chosen)

    def differences(self) -> tuple[float, float, float]:
        """The largest difference of any number: all adapters in one batch to each alone, to PEFT, and to none."""
        generations = self.generations(self.most)
        together = vectors(self.worker.run(RunBatch(0, generations, self.rows)))
        alone = run_apart(self.worker, generations, self.rows)
        theirs = self.peft_hidden()[:, 0].float().cpu().numpy()
        without = vectors(self.worker.run(RunBatch(0, [BARE] * len(self.rows), self.rows)))
        alone_to, peft_to, bare_to = (float(np.abs(together - other).max()) for other in (alone, theirs, without))
        return alone_to, peft_to, bare_to


def run_apart(worker: Worker, generations: Sequence[int], rows: Sequence[Tokens]) -> Array:
    """A batch for each generation, one after the other; the vectors of all rows, [rows, hidden]."""
    members: dict[int, list[int]] = defaultdict(list)
    for row, generation in enumerate(generations):
        members[generation].append(row)
    found: dict[int, Any] = {}
    for generation, places in members.items():
        done = worker.run(RunBatch(0, [generation] * len(places), [rows[place] for place in places]))
        found |= dict(zip(places, vectors(done), strict=True))
    return np.stack([found[row] for row in range(len(rows))])


def vectors(done: BatchDone) -> Array:
    """The vectors of a batch in the order of its rows, [rows, hidden]. Raises `RuntimeError` where one is missing."""
    found: dict[int, Any] = {}
    for group in done.groups:
        if group.errors:
            raise RuntimeError(f"the engine did not answer: {next(iter(group.errors.values()))}")
        found |= dict(zip(group.rows, group.columns["vector"], strict=True))
    return np.stack([found[row] for row in range(len(found))])
