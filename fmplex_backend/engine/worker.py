"""The engine proper: one backbone, the adapters and heads of the live generations, one batch at a time.

A batch in steps: `prepare` orders its rows and pads them, which needs no device and may be done while another batch
runs; `run` brings the adapters into slots, runs the backbone once for all rows, and then the heads, those of one kind
together. Rows that are the same for the backbone (**twins**: same tokens, same adapter or none) run once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from fmplex_backend.adapters.adapter import Adapter
from fmplex_backend.adapters.bank import AdapterBank, Stamp
from fmplex_backend.backbones.base import Backbone, Features, join
from fmplex_backend.engine.answering import Answering
from fmplex_backend.engine.device_errors import is_device_fault, is_out_of_memory
from fmplex_backend.engine.generation import Generation, prepare, read_adapter
from fmplex_backend.engine.graphs import Graphs, cuda_capture
from fmplex_backend.engine.tiers import AdapterTiers
from fmplex_backend.errors import FMplexError
from fmplex_backend.messages import (
    BatchDone,
    GenerationLoaded,
    GroupAnswer,
    LoadGeneration,
    RunBatch,
    Tokens,
    identity,
)

MEMORY = 4 << 30
"""Bytes of host memory for adapters, unless told otherwise."""


@dataclass(frozen=True)
class Together:
    """Physical rows of one shape, which go through the backbone together."""

    start: int
    stop: int
    inputs: Mapping[str, Tensor]
    """In host memory."""
    sequences: Sequence[int] | None
    """Of each row, as the backbone makes them; None: one each."""


@dataclass(frozen=True)
class Prepared:
    """A batch, ready to run."""

    message: RunBatch
    stamps: list[Stamp | None]
    """Of each physical row, its adapter; of the rows of one shape, those of one adapter lie together."""
    place: dict[int, int]
    """Row of the batch → its physical row."""
    parts: Sequence[Together]
    """All physical rows, in order."""
    errors: dict[int, str]
    """Row of the batch → why it cannot run."""

    @property
    def adapters(self) -> list[Stamp]:
        """The distinct adapters."""
        return list(dict.fromkeys(stamp for stamp in self.stamps if stamp is not None))


@dataclass(frozen=True)
class Loading:
    """A generation that was read and built to one side, or the reason why it cannot be served."""

    message: LoadGeneration
    parts: tuple[Generation, Adapter | None] | None
    error: str | None = None


class Worker:
    """Loads generations and runs batches on one device.

    `read` and `prepare` may be called from other threads, all else from one.
    """

    def __init__(
        self,
        backbone: Backbone,
        device: str,
        slots: int,
        *,
        memory: int = MEMORY,
        graphs: bool = False,
        log: Callable[[str], None] = print,
    ) -> None:
        """``slots``: adapters on the device at a time; ``memory``: bytes of host memory for adapters.

        ``graphs``: whether a GPU's forward passes are captured as CUDA graphs; ``log`` is told where that fails.
        """
        self.backbone = backbone
        self._device = device
        self._dtype = dtype = next(backbone.model.parameters()).dtype
        self._bank = AdapterBank(backbone.model, self._dtype, device, slots)
        self._tiers = AdapterTiers(self._bank, lambda path: read_adapter(path, backbone, dtype), memory)
        self._answering = Answering(device)
        captured = graphs and device != "cpu" and backbone.facts.modality == "text"
        self._graphs = Graphs(backbone, self._bank, device, log, cuda_capture) if captured else None
        self._generations: dict[int, Generation] = {}

    # ---- generations ----

    def load(self, message: LoadGeneration) -> GenerationLoaded:
        """Read a packed generation and take it in; one that cannot be served leaves nothing behind."""
        return self.take(self.read(message))

    def read(self, message: LoadGeneration) -> Loading:
        """The slow part of loading, apart from what serves."""
        stamp = Stamp(message.generation, message.vfm, message.version)
        try:
            return Loading(message, prepare(stamp, message.path, self.backbone, self._dtype, self._device))
        except FMplexError as error:
            return Loading(message, None, str(error))
        except Exception as error:  # out of memory, a file gone, a defect: it is refused, the others go on
            if is_device_fault(error):
                raise
            return Loading(message, None, f"it cannot be loaded: {type(error).__name__}: {error}")

    def take(self, loading: Loading) -> GenerationLoaded:
        """The quick part: what was read is served from here on."""
        message = loading.message
        if loading.parts is None:
            return GenerationLoaded(message.generation, loading.error)
        generation, adapter = loading.parts
        try:
            if adapter is not None:
                self._tiers.add(generation.stamp, message.path, adapter)
                if message.pinned:
                    self._tiers.pin(generation.stamp, True)
            self._answering.put(generation)
        except Exception as error:
            if is_device_fault(error):
                raise
            self._forget(message.generation)
            reason = str(error) if isinstance(error, FMplexError) else f"{type(error).__name__}: {error}"
            return GenerationLoaded(message.generation, reason)
        self._generations[message.generation] = generation
        return GenerationLoaded(message.generation, None, generation.n_bytes)

    def pin(self, number: int, pinned: bool) -> str | None:
        """Let a generation's adapter keep its slot, or not; why not, if it cannot be."""
        generation = self._generations.get(number)
        if generation is None or not generation.has_adapter:
            return None
        try:
            self._tiers.pin(generation.stamp, pinned)
        except FMplexError as error:
            return str(error)
        return None

    def drop(self, number: int) -> None:
        """Forget a generation."""
        del self._generations[number]
        self._forget(number)

    def _forget(self, number: int) -> None:
        self._answering.drop(number)
        self._tiers.remove(number)

    def close(self) -> None:
        """Take every hook off the backbone, which may go on without this worker."""
        self._tiers.close()
        self._bank.close()

    # ---- batches ----

    def prepare(self, message: RunBatch) -> Prepared:
        """Order and pad the rows of a batch. Rows whose generation is not here cannot run."""
        errors: dict[int, str] = {}
        twins: dict[tuple[object, ...], list[int]] = {}
        kinds: dict[tuple[object, ...], tuple[int, Generation]] = {}
        for row, (number, tokens) in enumerate(zip(message.generations, message.rows, strict=True)):
            generation = self._generations.get(number)
            if generation is None:
                errors[row] = f"generation {number} is not in this engine"
                continue
            key = (number if generation.has_adapter else None, *identity(tokens))
            kinds.setdefault(key, (row, generation))
            twins.setdefault(key, []).append(row)
        shapes = {key: self.backbone.shape(message.rows[row]) for key, (row, _) in kinds.items()}
        order = sorted(twins, key=lambda key: (shapes[key], self._order(kinds[key][1])))
        chosen = [kinds[key] for key in order]
        rows = [_with_prompt(message.rows[row], generation) for row, generation in chosen]
        stamps = [generation.stamp if generation.has_adapter else None for _, generation in chosen]
        place = {row: physical for physical, key in enumerate(order) for row in twins[key]}
        return Prepared(message, stamps, place, self._together(rows, [shapes[key] for key in order]), errors)

    def _together(self, rows: Sequence[Tokens], shapes: Sequence[object]) -> list[Together]:
        """Collate ``rows``, those of one shape by themselves; they lie together."""
        parts: list[Together] = []
        for _, own in groupby(range(len(rows)), key=lambda row: shapes[row]):
            places = list(own)
            found = [rows[place] for place in places]
            counts = self.backbone.sequences(found)
            parts.append(Together(places[0], places[-1] + 1, self.backbone.collate(found), counts))
        return parts

    def _order(self, generation: Generation) -> tuple[int, int, int]:
        """Sorts rows so that the bare ones, adapters of one kind, and rows of one adapter lie together, by slots."""
        number = generation.stamp.generation
        return (generation.layout, self._bank.slot(number), number) if generation.has_adapter else (0, 0, 0)

    def run(self, message: RunBatch) -> BatchDone:
        """Run one batch. Every row is answered in exactly one group, with an answer or with an error."""
        start = time.perf_counter()
        return self.run_prepared(self.prepare(message), start)

    def run_prepared(self, prepared: Prepared, start: float | None = None) -> BatchDone:
        """Run what `prepare` made; its time is counted from ``start``, or from now."""
        start = time.perf_counter() if start is None else start
        try:
            return self._run_whole(prepared, start)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        if self._device != "cpu":
            torch.cuda.empty_cache()
        return self._run_halves(prepared, start)

    def _run_whole(self, prepared: Prepared, start: float) -> BatchDone:
        adapters, room = prepared.adapters, self._tiers.room
        if len(adapters) > room:  # the scheduler asks for no more, but for a moment after adapters were pinned
            return self._run_rooms(prepared, room, start)
        moves, refused = self._tiers.bring(adapters)
        errors = dict(prepared.errors)
        for row, physical in prepared.place.items():
            stamp = prepared.stamps[physical]
            if stamp is not None and stamp.generation in refused:
                errors[row] = refused[stamp.generation]
        groups: list[GroupAnswer] = []
        if len(errors) < len(prepared.message.rows):
            keys = [None if s is None or s.generation in refused else s.generation for s in prepared.stamps]
            with torch.inference_mode():
                features = join([self._forward(part, keys[part.start : part.stop]) for part in prepared.parts])
                self._tiers.read_ahead(prepared.message.upcoming)
                members: dict[int, tuple[Generation, list[int]]] = {}
                for row, number in enumerate(prepared.message.generations):
                    if row not in errors:
                        members.setdefault(number, (self._generations[number], []))[1].append(row)
                groups = self._answering.answer(members, prepared.place, features)
        groups += _failures(prepared.message, errors)
        seconds = time.perf_counter() - start
        return BatchDone(prepared.message.batch, groups, seconds, moves.installed, moves.evicted)

    def _forward(self, part: Together, generations: Sequence[int | None]) -> Features:
        """``generations``: of the part's rows, each the one whose adapter touches it, or None."""
        if self._graphs is not None and (features := self._graphs.forward(part.inputs, generations)) is not None:
            return features
        if part.sequences is not None:
            generations = [g for g, count in zip(generations, part.sequences, strict=True) for _ in range(count)]
        with self._bank.batch(generations):
            moved = {name: tensor.to(self._device, non_blocking=True) for name, tensor in part.inputs.items()}
            features = self.backbone.forward(moved)
        return replace(features, counts=part.sequences) if part.sequences is not None else features

    def _run_rooms(self, prepared: Prepared, room: int, start: float) -> BatchDone:
        """With no more adapters at a time than there are slots."""
        adapters = prepared.adapters
        parts = []
        for first in range(0, len(adapters), room):
            wanted: set[Stamp | None] = set(adapters[first : first + room])
            if first == 0:
                wanted.add(None)
            parts.append([row for row, physical in prepared.place.items() if prepared.stamps[physical] in wanted])
        return self._run_parts(prepared, parts, start)

    def _run_halves(self, prepared: Prepared, start: float) -> BatchDone:
        """What did not fit into memory, in two parts; a single row that does not fit has no answer."""
        count = len(prepared.stamps)
        if count == 1:
            message, errors = prepared.message, dict(prepared.errors)
            for row in prepared.place:
                vfm = self._generations[message.generations[row]].stamp.vfm
                errors[row] = f"vFM {vfm!r}: a row of this length does not fit into the device's memory"
            return BatchDone(message.batch, _failures(message, errors), time.perf_counter() - start)
        half = (count + 1) // 2
        parts = [
            [row for row, physical in prepared.place.items() if (physical < half) == first] for first in (True, False)
        ]
        done = self._run_parts(prepared, parts, start)
        return replace(done, fitting=half if done.fitting is None else done.fitting)

    def _run_parts(self, prepared: Prepared, parts: Sequence[Sequence[int]], start: float) -> BatchDone:
        """The rows of each of ``parts`` by themselves, answered as one batch."""
        message = prepared.message
        whole = BatchDone(message.batch, _failures(message, prepared.errors), 0.0)
        fitting: list[int] = []
        for rows in parts:
            part = RunBatch(message.batch, [message.generations[r] for r in rows], [message.rows[r] for r in rows])
            done = self.run_prepared(self.prepare(part))
            for group in done.groups:
                places = [rows[row] for row in group.rows]
                errors = {rows[row]: error for row, error in group.errors.items()}
                whole.groups.append(GroupAnswer(group.generation, places, group.columns, errors))
            whole.installed.extend(done.installed)
            whole.evicted.extend(done.evicted)
            fitting += [] if done.fitting is None else [done.fitting]
        return replace(whole, seconds=time.perf_counter() - start, fitting=min(fitting, default=None))


def _failures(message: RunBatch, errors: Mapping[int, str]) -> list[GroupAnswer]:
    """``errors`` by generation, as answers."""
    members: dict[int, list[int]] = {}
    for row in errors:
        members.setdefault(message.generations[row], []).append(row)
    return [GroupAnswer(g, rows, {}, {row: errors[row] for row in rows}) for g, rows in members.items()]


def _with_prompt(tokens: Tokens, generation: Generation) -> Tokens:
    """``tokens`` with positions in front that the adapter's prompt will fill; any token may stand there.

    As PEFT does, type ids are kept for one of transformers' task classes, and dropped (all 0) for a bare backbone.
    """
    count = generation.virtual_tokens
    if not count:
        return tokens
    ids = tokens["input_ids"]
    padded = {"input_ids": np.concatenate([np.repeat(ids[:1], count), ids])}
    if "token_type_ids" in tokens and generation.artifact.head == "transformers":
        padded["token_type_ids"] = np.concatenate([np.zeros(count, ids.dtype), tokens["token_type_ids"]])
    return padded
