"""The adapter bank: adapters of many vFMs, applied to the rows of one batch together.

Per touched layer the adapters are stacked, ``A [slots, in, r]`` and ``B [slots, r, out]``; each row of a batch picks
its own by index, so a mixed batch is two batched products and not a loop over vFMs (Punica and S-LoRA do the same in
CUDA kernels). A layer's stack is split by rank class (powers of two), so that a large rank does not make small ones
pay, and grows with what is loaded. A layer that no row of the batch touches costs nothing: its hook has no work.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class AdapterTensors:
    """One adapter on the engine's side; all fp32 on the CPU, B scaled (see `peft_checkpoint.LoraWeights`)."""

    a: Mapping[str, Tensor]
    """Layer → [r, in]."""
    b: Mapping[str, Tensor]
    """Layer → [out, r]."""
    bias_delta: Mapping[str, Tensor]
    """Module → [size]: what is added to the module's output."""

    @property
    def n_bytes(self) -> int:
        """Bytes of all tensors in fp32."""
        return sum(t.numel() * 4 for table in (self.a, self.b, self.bias_delta) for t in table.values())


class _Stack:
    """Equally shaped tensors of many adapters in one tensor [slots, …], grown by doubling; slot 0 stays zero."""

    def __init__(self, shapes: list[tuple[int, ...]], dtype: torch.dtype, device: str) -> None:
        self.tensors = [torch.zeros((2, *shape), dtype=dtype, device=device) for shape in shapes]
        self.free = [1]

    def put(self, values: list[Tensor]) -> int:
        if not self.free:
            size = len(self.tensors[0])
            self.tensors = [torch.cat([t, torch.zeros_like(t)]) for t in self.tensors]
            self.free = list(range(2 * size - 1, size - 1, -1))
        slot = self.free.pop()
        for tensor, value in zip(self.tensors, values, strict=True):
            target = tensor[slot]
            target[tuple(slice(0, n) for n in value.shape)] = value.to(tensor.dtype)
        return slot

    def drop(self, slot: int) -> None:
        for tensor in self.tensors:
            tensor[slot].zero_()  # a reused slot must not show what it held before
        self.free.append(slot)


@dataclass(frozen=True)
class _Work:
    """What one layer has to add for one stack in the current batch."""

    stack: _Stack
    rows: Tensor | None
    """Rows concerned, or None for all of them."""
    slots: Tensor
    """Slot of each of these rows."""
    single: int | None
    """The slot, where it is the same for all rows."""


def rank_class(rank: int) -> int:
    """The width at which an adapter of ``rank`` is stored: the next power of two, at least 4."""
    return max(4, 1 << (rank - 1).bit_length())


class AdapterBank:
    """Adapters by key, and the hooks that add them to a model's layers. Not thread-safe."""

    def __init__(self, model: nn.Module, dtype: torch.dtype, device: str) -> None:
        self._modules = dict(model.named_modules())
        self._dtype, self._device = dtype, device
        self._stacks: dict[tuple[str, int], _Stack] = {}
        self._slots: dict[int, dict[tuple[str, int], int]] = {}
        self._hooks: dict[str, Any] = {}
        self._work: dict[str, list[_Work]] = {}

    def load(self, key: int, adapter: AdapterTensors) -> None:
        """Take an adapter under ``key``. A rank class of 0 is a layer's stack of biases."""
        places = self._slots[key] = {}
        for layer, a in adapter.a.items():
            rank = rank_class(a.shape[0])
            module = self._modules[layer]
            shapes = [(module.in_features, rank), (rank, module.out_features)]
            places[layer, rank] = self._put(layer, rank, shapes, [a.T, adapter.b[layer].T])  # type: ignore[arg-type]
        for layer, delta in adapter.bias_delta.items():
            places[layer, 0] = self._put(layer, 0, [tuple(delta.shape)], [delta])

    def _put(self, layer: str, rank: int, shapes: list[tuple[int, ...]], values: list[Tensor]) -> int:
        if (layer, rank) not in self._stacks:
            self._stacks[layer, rank] = _Stack(shapes, self._dtype, self._device)
        if layer not in self._hooks:
            self._hooks[layer] = self._modules[layer].register_forward_hook(self._hook_of(layer))
        return self._stacks[layer, rank].put(values)

    def drop(self, key: int) -> None:
        """Forget the adapter under ``key``; its slots are zeroed."""
        for place, slot in self._slots.pop(key).items():
            self._stacks[place].drop(slot)

    def close(self) -> None:
        """Take every hook off the model, which may go on without this bank."""
        for hook in self._hooks.values():
            hook.remove()

    @contextmanager
    def batch(self, keys: list[int | None]) -> Iterator[None]:
        """Apply, within the block, the adapter under ``keys[i]`` to row i; None is the bare backbone."""
        self._work = self._plan(keys)
        try:
            yield
        finally:
            self._work = {}

    def _plan(self, keys: list[int | None]) -> dict[str, list[_Work]]:
        members: dict[tuple[str, int], tuple[list[int], list[int]]] = {}
        for row, key in enumerate(keys):
            for place, slot in (self._slots[key] if key is not None else {}).items():
                rows, slots = members.setdefault(place, ([], []))
                rows.append(row)
                slots.append(slot)
        work: dict[str, list[_Work]] = {}
        for (layer, rank), (rows, slots) in members.items():
            index = None if len(rows) == len(keys) else torch.tensor(rows, device=self._device)
            single = slots[0] if len(set(slots)) == 1 else None
            chosen = torch.tensor(slots, device=self._device)
            work.setdefault(layer, []).append(_Work(self._stacks[layer, rank], index, chosen, single))
        return work

    def _hook_of(self, layer: str) -> Any:
        def hook(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            for work in self._work.get(layer, ()):
                delta = _delta(work, args[0])
                if work.rows is None:
                    output += delta
                else:
                    output.index_add_(0, work.rows, delta)
            return output

        return hook


def _delta(work: _Work, x: Tensor) -> Tensor:
    """What the adapters add for their rows of ``x`` [n, …, in]: [rows, …, out], or for biases broadcast over it."""
    tensors = work.stack.tensors
    if len(tensors) == 1:
        rows = len(work.slots)
        size = tensors[0].shape[-1]
        bias = tensors[0][work.slots].view(rows, *([1] * (x.ndim - 2)), size)
        return bias.expand(rows, *x.shape[1:-1], size)
    a, b = tensors
    x = x if work.rows is None else x[work.rows]
    if work.single is not None:
        return (x @ a[work.single]) @ b[work.single]
    flat = x if x.ndim == 3 else x.unsqueeze(1)
    delta = torch.bmm(torch.bmm(flat, a[work.slots]), b[work.slots])
    return delta if x.ndim == 3 else delta.squeeze(1)
