"""The adapter bank: adapters of many vFMs, applied to the rows of one batch together.

1. An adapter in the bank has a **slot**, and a batch's rows pick theirs by index: a mixed batch is two batched products
   a layer, not a loop over vFMs (Punica and S-LoRA do the same in CUDA kernels). Slot 0 is the bare backbone.
2. Tensors that go to the same place are stacked, by rank class (powers of two), so that a large rank does not make
   small ones pay. A stack grows with what is loaded; place and slot give the row in it by a table.
3. What a batch does not need costs nothing: a layer that none of its rows touches has no work, a batch without
   adapters has none at all. Gathering each row's own tensors costs as much as multiplying with them, and is left out
   where the rows take a run of entries, each as often (what a fair queue makes of vFMs that all have rows), and where
   there is one adapter only; that one is merged into the weights for the time being where this is cheaper.
4. A slot is stamped with whose adapter it holds: a row is computed only in a slot with its own stamp. Slots that are
   given up are zeroed in every stack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fmplex_backend.adapters.adapter import EMBEDDINGS, Adapter, Place
from fmplex_backend.errors import FMplexError

_DENSE = 0.5
"""Rows that lie so close together are taken as one slice, those between them with slot 0."""


class Stamp(NamedTuple):
    """Whose adapter a slot holds."""

    generation: int
    vfm: str
    version: int


class WrongSlot(FMplexError):
    """A row's adapter is not where it should be; the row must not be computed."""

    code = "INTERNAL"


class _Stack:
    """Tensors of many adapters for one place: [entries, …], grown by doubling; entry 0 changes nothing."""

    def __init__(self, place: Place, shapes: list[tuple[int, ...]], slots: int, dtype: torch.dtype, device: str):
        self.place = place
        self._neutral = 1.0 if place.role in ("scale", "in_scale") else 0.0
        self.tensors = [torch.zeros((2, *shape), dtype=dtype, device=device) for shape in shapes]
        for tensor in self.tensors:
            tensor[0] = self._neutral
        self.table = np.zeros(slots + 1, np.int64)
        """Slot → entry."""
        self.table_on_device = torch.zeros(slots + 1, dtype=torch.int64, device=device)
        """The same, where a graph can read it."""
        self._free = [1]

    def put(self, slot: int, values: Sequence[Tensor]) -> bool:
        """Whether the stack had to grow for it."""
        grows = not self._free
        if grows:
            size = len(self.tensors[0])
            self.tensors = [torch.cat([t, torch.zeros_like(t)]) for t in self.tensors]
            self._free = list(range(2 * size - 1, size - 1, -1))
        entry = self._free.pop()
        for tensor, value in zip(self.tensors, values, strict=True):
            tensor[entry][tuple(slice(0, n) for n in value.shape)].copy_(value, non_blocking=True)
        self._enter(slot, entry)
        return grows

    def _enter(self, slot: int, entry: int) -> None:
        self.table[slot] = entry
        self.table_on_device[slot] = entry

    def drop(self, slot: int) -> None:
        entry = int(self.table[slot])
        self._enter(slot, 0)
        for tensor in self.tensors:
            tensor[entry].zero_()  # a reused slot must not show what it held before
        self._free.append(entry)


Merge = Callable[[Tensor], Tensor | None]
"""The weight for an input, with an adapter merged in, or None for the layer's own."""


class _Forward:
    """In the place of a linear layer's forward pass: the same, or with another weight for the time being."""

    def __init__(self, module: nn.Linear) -> None:
        self._module = module
        self._replaced = vars(module).get("forward")
        """What stood there instead of the class's own."""
        self._plain = module.forward
        self.mergers: list[Merge] = []

    @classmethod
    def of(cls, module: nn.Linear) -> _Forward:
        """The one that ``module`` has, or gets now."""
        found = vars(module).get("forward")
        if not isinstance(found, cls):
            found = module.forward = cls(module)  # type: ignore[method-assign, assignment]
        return found

    def __call__(self, x: Tensor) -> Tensor:
        for merge in self.mergers:
            if (weight := merge(x)) is not None:
                return nn.functional.linear(x, weight, self._module.bias)
        output: Tensor = self._plain(x)
        return output

    def remove(self, merge: Merge) -> None:
        """Take one away; after the last, the module is as it was."""
        self.mergers.remove(merge)
        if not self.mergers:
            if self._replaced is None:
                del self._module.forward
            else:
                self._module.forward = self._replaced  # type: ignore[method-assign]


@dataclass(frozen=True)
class _Work:
    """What one stack has to do in the current batch."""

    stack: _Stack
    rows: slice | Tensor
    """Rows concerned: a slice of the batch, or their places in it."""
    entries: Tensor
    """Of each of these rows, its entry of the stack."""
    run: slice | None
    """The entries, where they are consecutive ones, each of equally many rows that lie together."""
    whole: bool
    """Whether every row of the batch is concerned."""

    @property
    def single(self) -> int | None:
        """The entry, where there is one only."""
        return self.run.start if self.run is not None and self.run.stop == self.run.start + 1 else None

    def gathered(self) -> list[Tensor]:
        """Each row's own tensors: [rows, …]."""
        return [tensor.index_select(0, self.entries) for tensor in self.stack.tensors]


def _embeddings(model: nn.Module) -> nn.Module:
    """Where prompts go in; the model itself where it has no word embeddings, and no prompt is served."""
    find = getattr(model, "get_input_embeddings", None)
    try:
        found = find() if callable(find) else None
    except NotImplementedError:
        found = None
    return found if isinstance(found, nn.Module) else model


class AdapterBank:
    """Adapters by slot, and the hooks that apply them to a model's modules. Not thread-safe."""

    def __init__(self, model: nn.Module, dtype: torch.dtype, device: str, slots: int) -> None:
        """``slots``: most adapters in it at a time."""
        self._modules = dict(model.named_modules())
        self._modules[EMBEDDINGS] = _embeddings(model)
        self._dtype, self._device = dtype, device
        self.slots = slots
        self._free = list(range(slots, 0, -1))
        self._slots: dict[int, int] = {}
        """Generation → slot."""
        self._stamps: list[Stamp | None] = [None] * (slots + 1)
        self._places: dict[int, list[Place]] = {}
        self._stacks: dict[Place, _Stack] = {}
        self._hooks: dict[tuple[str, bool], Any] = {}
        self._mergers: list[tuple[nn.Linear, Merge]] = []
        self._work: dict[str, list[_Work]] = {}
        self._input_work: dict[str, list[_Work]] = {}
        self._merged: str | None = None
        """The layer whose output has its adapter in it already; set and read within one call of the layer."""
        self.layout = 0
        """Changes whenever a stack is new or lies elsewhere in memory."""

    # ---- slots ----

    def __contains__(self, generation: int) -> bool:
        return generation in self._slots

    @property
    def free(self) -> int:
        """Slots without an adapter."""
        return len(self._free)

    def slot(self, generation: int) -> int:
        """Where the generation's adapter is, 0 where it has no slot; may be asked from any thread."""
        return self._slots.get(generation, 0)

    def put(self, stamp: Stamp, adapter: Adapter) -> None:
        """Give an adapter a slot. Raises IndexError where none is free; what fails leaves nothing behind."""
        slot = self._free.pop()
        self._slots[stamp.generation] = slot
        places = self._places[slot] = []
        try:
            for place, tensors in adapter.parts.items():
                stack = self._stacks.get(place) or self._new_stack(place, tensors)
                self.layout += stack.put(slot, tensors)
                places.append(place)
        except Exception:
            self.drop(stamp.generation)
            raise
        self._stamps[slot] = stamp

    def drop(self, generation: int) -> None:
        """Give up a slot; it is zeroed. Nothing happens where the generation has none."""
        slot = self._slots.pop(generation, None)
        if slot is None:
            return
        self._stamps[slot] = None
        for place in self._places.pop(slot):
            self._stacks[place].drop(slot)
        self._free.append(slot)

    def check(self, stamp: Stamp) -> None:
        """Raise `WrongSlot` unless the adapter of exactly this stamp is in the bank, in a slot of its own."""
        slot = self._slots.get(stamp.generation, 0)
        if slot == 0 or self._stamps[slot] != stamp:
            held = None if slot == 0 else self._stamps[slot]
            raise WrongSlot(f"vFM {stamp.vfm!r}: the slot of its version {stamp.version} holds {held}; it was not run")

    def _new_stack(self, place: Place, tensors: Sequence[Tensor]) -> _Stack:
        shapes = [tuple(t.shape) for t in tensors]
        if place.role == "low_rank":
            (n_in, _), (_, n_out) = shapes
            shapes = [(n_in, place.width), (place.width, n_out)]
        stack = self._stacks[place] = _Stack(place, shapes, self.slots, self._dtype, self._device)
        self.layout += 1
        before = place.role == "in_scale"
        if (place.module, before) not in self._hooks:
            module = self._modules[place.module]
            if type(module) is nn.Linear:
                merge = self._merger(place.module, module)
                _Forward.of(module).mergers.append(merge)
                self._mergers.append((module, merge))
            self._hooks[place.module, before] = (
                module.register_forward_pre_hook(self._input_hook(place.module))
                if before
                else module.register_forward_hook(self._hook(place.module))
            )
        return stack

    def close(self) -> None:
        """Take every hook off the model, which may go on without this bank."""
        for hook in self._hooks.values():
            hook.remove()
        for module, merge in self._mergers:
            _Forward.of(module).remove(merge)
        self._mergers.clear()

    # ---- batches ----

    @contextmanager
    def batch(self, generations: Sequence[int | None]) -> Iterator[None]:
        """Apply, within the block, the adapter of ``generations[i]`` to row i; None is the bare backbone.

        Rows of one adapter, and adapters of one kind, should lie together: they are then taken as slices. Raises
        KeyError for a generation that has no slot.
        """
        slots = np.array([0 if g is None else self._slots[g] for g in generations])
        if slots.any():
            self._plan(slots)
        try:
            yield
        finally:
            self._work, self._input_work = {}, {}

    def slots_of(self, generations: Sequence[int | None]) -> Tensor:
        """Of each row, its slot; int64 in host memory. Raises KeyError for a generation that has none."""
        return torch.tensor([0 if g is None else self._slots[g] for g in generations])

    def has_prompt(self, generations: Sequence[int | None]) -> bool:
        """Whether the adapter of any of these rows has a prompt, which `every_slot` does not apply."""
        slots = {self._slots[g] for g in generations if g is not None}
        return any(place.role == "prompt" for slot in slots for place in self._places[slot])

    @contextmanager
    def every_slot(self, slots: Tensor) -> Iterator[None]:
        """Apply, within the block, whatever stands in ``slots`` [n], on the device, when it is computed.

        All stacks work on all rows, so that a captured graph serves every mix; see `fmplex_backend.engine.graphs`.
        """
        for place, stack in self._stacks.items():
            if place.role != "prompt":
                table = self._input_work if place.role == "in_scale" else self._work
                work = _Work(stack, slice(0, len(slots)), stack.table_on_device[slots], None, whole=True)
                table.setdefault(place.module, []).append(work)
        self._scales_first()
        try:
            yield
        finally:
            self._work, self._input_work = {}, {}

    def _plan(self, slots: np.ndarray[Any, Any]) -> None:
        used = {place for slot in set(slots.tolist()) - {0} for place in self._places[slot]}
        for place, stack in self._stacks.items():
            if place in used:
                table = self._input_work if place.role == "in_scale" else self._work
                table.setdefault(place.module, []).append(self._one(stack, stack.table[slots]))
        self._scales_first()

    def _scales_first(self) -> None:
        for works in self._work.values():
            works.sort(key=lambda work: work.stack.place.role != "scale")  # the others add to what was scaled

    def _one(self, stack: _Stack, entries: np.ndarray[Any, Any]) -> _Work:
        count = len(entries)
        (touched,) = entries.nonzero()
        low, high = int(touched[0]), int(touched[-1]) + 1
        dense = len(touched) >= _DENSE * (high - low) and stack.place.role != "prompt"
        if dense or len(touched) == high - low:
            rows: slice | Tensor = slice(low, high)
            entries = entries[low:high]
        else:
            rows = torch.from_numpy(touched).to(self._device)
            entries = entries[touched]
        run = _run(entries)
        whole = isinstance(rows, slice) and run is not None and len(entries) == count
        return _Work(stack, rows, torch.from_numpy(entries).to(self._device), run, whole)

    def _merger(self, name: str, module: nn.Linear) -> Merge:
        def merge(x: Tensor) -> Tensor | None:
            works = self._work.get(name)
            if not works or len(works) > 1 or not _worth_merging(works[0], x, module.weight):
                return None
            a, b = (tensor[works[0].single] for tensor in works[0].stack.tensors)
            self._merged = name
            return torch.addmm(module.weight, b.T, a.T)

        return merge

    def _hook(self, module: str) -> Any:
        def hook(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            if self._merged == module:
                self._merged = None
                return
            for work in self._work.get(module, ()):
                _APPLY[work.stack.place.role](work, args[0], output)

        return hook

    def _input_hook(self, module: str) -> Any:
        def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            works = self._input_work.get(module)
            if not works:
                return None
            x = args[0].clone()  # other modules may read it too
            for work in works:
                _scale(work, x, x)
            return (x, *args[1:])

        return hook


def _run(entries: np.ndarray[Any, Any]) -> slice | None:
    """Consecutive ``entries``, each of equally many rows that lie together, as a slice."""
    first, distinct = int(entries[0]), int(entries[-1]) - int(entries[0]) + 1
    if distinct < 1 or len(entries) % distinct:
        return None
    wanted = np.repeat(np.arange(first, first + distinct), len(entries) // distinct)
    return slice(first, first + distinct) if (entries == wanted).all() else None


def _worth_merging(work: _Work, x: Tensor, weight: Tensor) -> bool:
    """Whether a layer's one adapter is cheaper in its weights than beside them: where there are many positions.

    In fp32 only; in fewer bits, a weight that was rounded once more would lose part of what the adapter adds.
    """
    if work.stack.place.role != "low_rank" or work.single is None or not work.whole or x.dtype != torch.float32:
        return False
    n_out, n_in = weight.shape
    return x.numel() // n_in * (n_in + n_out) > 2 * n_in * n_out


def _low_rank(work: _Work, x: Tensor, output: Tensor) -> None:
    """``output += (x A) B`` for the rows concerned; x [n, …, in], output [n, …, out]."""
    x, rows = x[work.rows], output[work.rows]
    if work.single is not None:
        a, b = (tensor[work.single] for tensor in work.stack.tensors)
        h = x.reshape(-1, x.shape[-1]) @ a
        if isinstance(work.rows, slice):
            rows.view(-1, rows.shape[-1]).addmm_(h, b)
        else:
            output.index_add_(0, work.rows, (h @ b).view(rows.shape))
        return
    a, b = work.gathered() if work.run is None else (tensor[work.run] for tensor in work.stack.tensors)
    h = torch.bmm(x.reshape(len(a), -1, x.shape[-1]), a)
    if isinstance(work.rows, slice):
        rows.view(len(a), -1, rows.shape[-1]).baddbmm_(h, b)
    else:
        output.index_add_(0, work.rows, torch.bmm(h, b).view(rows.shape))


def _shift(work: _Work, _x: Tensor, output: Tensor) -> None:
    shift = _broadcast(work, output)
    if isinstance(work.rows, slice):
        output[work.rows] += shift
    else:
        output.index_add_(0, work.rows, shift.expand(len(shift), *output.shape[1:]))


def _scale(work: _Work, _x: Tensor, output: Tensor) -> None:
    if isinstance(work.rows, slice):
        output[work.rows] *= _broadcast(work, output)
    else:
        output[work.rows] = output[work.rows] * _broadcast(work, output)


def _prompt(work: _Work, _x: Tensor, output: Tensor) -> None:
    (prompts,) = work.gathered()
    output[work.rows, : work.stack.place.width] = prompts


def _broadcast(work: _Work, like: Tensor) -> Tensor:
    """The rows' own vectors, as [rows, 1 …, size]."""
    (vectors,) = work.gathered()
    return vectors.view(len(vectors), *([1] * (like.ndim - 2)), vectors.shape[-1])


_APPLY = {"low_rank": _low_rank, "shift": _shift, "scale": _scale, "prompt": _prompt}
