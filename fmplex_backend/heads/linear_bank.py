"""Linear heads of many vFMs in one batched product, however many labels each has.

Heads of one pooling are stacked by width class (powers of two, at least 4), ``weight [entries, hidden, width]`` and
``bias [entries, width]``, and every row picks its own. Wide heads (embeddings) are not worth the gathering: they run
one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fmplex_backend.arrays import width_class
from fmplex_backend.backbones.base import Features
from fmplex_backend.heads.projections import Linear

WIDEST = 64


class Section(NamedTuple):
    """Heads that run together."""

    pooling: str
    reads: int
    """Numbers of a row."""
    width: int


class LinearBank:
    """Linear heads by generation. Not thread-safe."""

    def __init__(self) -> None:
        self._stacks: dict[Section, tuple[Tensor, Tensor]] = {}
        self._free: dict[Section, list[int]] = {}
        self._entries: dict[int, tuple[Section, int]] = {}

    def section(self, head: Linear) -> Section | None:
        """Where ``head`` belongs; None where it has no weights or too many outputs."""
        if head.weight is None or len(head.weight) > WIDEST:
            return None
        return Section(head.pooling, head.weight.shape[1], width_class(len(head.weight)))

    def put(self, generation: int, head: Linear) -> None:
        """Take a head that has a section."""
        section, weight = self.section(head), head.weight
        assert section is not None
        assert weight is not None
        if not self._free.get(section):
            self._grow(section, weight)
        entry = self._free[section].pop()
        weights, biases = self._stacks[section]
        weights[entry, :, : len(weight)] = weight.T
        if head.bias is not None:
            biases[entry, : len(weight)] = head.bias
        self._entries[generation] = (section, entry)

    def _grow(self, section: Section, like: Tensor) -> None:
        old = self._stacks.get(section)
        size = len(old[0]) if old else 0
        more = max(4, size)
        new = (like.new_zeros(more, like.shape[1], section.width), like.new_zeros(more, section.width))
        self._stacks[section] = new if old is None else (torch.cat([old[0], new[0]]), torch.cat([old[1], new[1]]))
        self._free[section] = list(range(size + more - 1, size - 1, -1))

    def drop(self, generation: int) -> None:
        """Forget a head; its entry is zeroed. Nothing happens where it has none."""
        if (place := self._entries.pop(generation, None)) is not None:
            section, entry = place
            for tensor in self._stacks[section]:
                tensor[entry].zero_()
            self._free[section].append(entry)

    def __call__(self, section: Section, features: Features, rows: Tensor, generations: Sequence[int]) -> Tensor:
        """Raw outputs of ``rows`` of the batch, each by the head of its own generation.

        fp32, [rows, width], or [rows, t, width] without pooling; beyond a head's own outputs there are zeros.
        """
        weights, biases = self._stacks[section]
        entries = [self._entries[generation][1] for generation in generations]
        if len(set(entries)) == 1:
            weight, bias = weights[entries[0]], biases[entries[0]]
            return features.pooled(section.pooling)[rows][..., : section.reads] @ weight + bias
        index = torch.tensor(entries, device=weights.device)
        x = features.pooled(section.pooling)[rows][..., : section.reads]
        flat = x if x.ndim == 3 else x.unsqueeze(1)
        raw = torch.baddbmm(biases[index].unsqueeze(1), flat, weights[index])
        return raw if x.ndim == 3 else raw.squeeze(1)
