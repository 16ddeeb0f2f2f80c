"""What a backbone plug-in is: a family of models behind one small interface. Torch lives on this side only."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from fmplex_backend.backbones.facts import BackboneFacts
from fmplex_backend.messages import Tokens
from fmplex_backend.repository.poolings import Reading, reading


@dataclass
class Features:
    """What the backbone made of s sequences, t positions wide; positions beyond a sequence's own are masked.

    A row is one sequence, or, of a series, one for each channel.
    """

    hidden: Tensor
    """[s, t, hidden], in the backbone's dtype."""
    mask: Tensor
    """[s, t] int64, 1 where the sequence has a position."""
    inputs: Mapping[str, Tensor]
    """What went in, each [s, …]."""
    pooler_output: Tensor | None = None
    """[s, hidden]: the backbone's own pooler, where it has a trained one."""
    special: int = 0
    """Positions in front that stand for no part of the input, and that a mean leaves out; of text none is left out."""
    levels: Tensor | None = None
    """[s, 2] fp32: mean and standard deviation that a series had."""
    counts: Sequence[int] | None = None
    """Sequences of each row, in order; None: one each."""
    _pooled: dict[str, Tensor] = field(default_factory=dict)

    def of_rows(self, rows: Sequence[int]) -> Features:
        """Those of some rows, in this order."""
        counts = self.channels()
        starts = [0, *accumulate(counts)]
        chosen = [place for row in rows for place in range(starts[row], starts[row + 1])]
        return Features(
            self.hidden[chosen],
            self.mask[chosen],
            {name: tensor[chosen] for name, tensor in self.inputs.items()},
            None if self.pooler_output is None else self.pooler_output[chosen],
            self.special,
            None if self.levels is None else self.levels[chosen],
            None if self.counts is None else [counts[row] for row in rows],
        )

    def channels(self) -> list[int]:
        """Sequences of each row."""
        return list(self.counts) if self.counts is not None else [1] * len(self.hidden)

    def pooled(self, pooling: str) -> Tensor:
        """What a head reads, fp32: one vector a row, [n, width], or for ``none`` one a position, [n, t, hidden].

        See `fmplex_backend.repository.poolings`. Of rows with fewer channels than others, what ``each`` reads is
        filled with zeros.
        """
        if pooling not in self._pooled:
            how = reading(pooling)
            self._pooled[pooling] = self._positions() if how is None else self._read(how)
        return self._pooled[pooling]

    def of_sequences(self, pooling: str) -> Tensor:
        """What a head reads of each sequence by itself, fp32 [s, width]; ``pooling`` is one without ``each``."""
        how = reading(pooling)
        assert how is not None
        return self._of_sequences(how)

    def by_row(self, of_sequences: Tensor) -> Tensor:
        """[s, …] as [n, most sequences of a row, …], zeros where a row has fewer."""
        rows = torch.split(of_sequences, self.channels())
        return nn.utils.rnn.pad_sequence(rows, batch_first=True)  # type: ignore[arg-type]

    def lengths(self) -> list[int]:
        """Positions of each row, to the last that is its own: those that ``none`` gives a vector for."""
        places = torch.arange(1, self.mask.shape[1] + 1, device=self.mask.device)
        own: list[int] = ((self.mask * places).amax(1) - self.special).tolist()
        if self.counts is None:
            return own
        ends = list(accumulate(self.counts))
        return [sum(own[end - count : end]) for end, count in zip(ends, self.counts, strict=True)]

    def _positions(self) -> Tensor:
        hidden = self.hidden[:, self.special :].float()
        if self.counts is None:
            return hidden
        return self.by_row(hidden).flatten(1, 2)

    def _read(self, how: Reading) -> Tensor:
        if self.counts is None:
            return self._of_sequences(how)
        if how.each:
            return self.by_row(self._of_sequences(how)).flatten(1)
        hidden, mask = self.by_row(self.hidden[:, self.special :]), self.by_row(self.mask[:, self.special :])
        levels = None if self.levels is None else self._mean_levels(self.levels)
        parts = [_part(part, hidden.flatten(1, 2), mask.flatten(1, 2), 0, levels) for part in how.parts]
        return torch.cat(parts, -1)

    def _of_sequences(self, how: Reading) -> Tensor:
        return torch.cat([_part(part, self.hidden, self.mask, self.special, self.levels) for part in how.parts], -1)

    def _mean_levels(self, levels: Tensor) -> Tensor:
        assert self.counts is not None
        return torch.stack([own.mean(0) for own in torch.split(levels, list(self.counts))])


def _part(part: str, hidden: Tensor, mask: Tensor, special: int, levels: Tensor | None) -> Tensor:
    """fp32 [s, width] of one part of a pooling."""
    if part == "cls":
        return hidden[:, 0].float()
    if part == "last":
        places = torch.arange(mask.shape[1], device=mask.device)
        return hidden[torch.arange(len(mask), device=mask.device), (mask * places).argmax(1)].float()
    if part == "levels":
        if levels is None:
            raise ValueError("the backbone tells no levels")
        return levels
    values, present = hidden[:, special:].float(), mask[:, special:].unsqueeze(-1)
    if part == "max":
        return values.masked_fill(present == 0, -torch.inf).amax(1)
    weights = present.to(torch.float32)
    mean = (values * weights).sum(1) / weights.sum(1)
    if part == "mean":
        return mean
    return (((values - mean.unsqueeze(1)) ** 2 * weights).sum(1) / weights.sum(1)).sqrt()


def join(parts: Sequence[Features]) -> Features:
    """The features of batches that went through one after the other, as those of one batch.

    ``inputs`` are left out where the parts differ in shape.
    """
    if len(parts) == 1:
        return parts[0]
    longest = max(part.mask.shape[1] for part in parts)

    def padded(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([nn.functional.pad(x, [0, 0] * (x.ndim - 2) + [0, longest - x.shape[1]]) for x in tensors])

    first = parts[0]
    counts = None if first.counts is None else [count for part in parts for count in part.counts or ()]
    return Features(
        padded([part.hidden for part in parts]),
        padded([part.mask for part in parts]),
        {},
        _together([part.pooler_output for part in parts]),
        first.special,
        _together([part.levels for part in parts]),
        counts,
    )


def _together(tensors: Sequence[Tensor | None]) -> Tensor | None:
    found = [tensor for tensor in tensors if tensor is not None]
    return torch.cat(found) if len(found) == len(tensors) else None


class Backbone(ABC):
    """One loaded physical backbone. Not thread-safe; the engine runs one batch at a time."""

    facts: BackboneFacts
    model: Any
    """An `nn.Module` in eval mode, on its device, requires no gradient; adapters hook the layers that `facts` name."""
    device: str

    def shape(self, row: Tokens) -> tuple[int, ...]:
        """Rows of one shape go through together; rows of others by themselves, in the same batch. ``()``: all do."""
        return ()

    def sequences(self, rows: Sequence[Tokens]) -> list[int] | None:
        """How many sequences the backbone makes of each row, all of which its adapter touches. None: one each."""
        return None

    @abstractmethod
    def collate(self, rows: Sequence[Tokens]) -> dict[str, Tensor]:
        """``rows``, of one shape, padded to the longest, in host memory: input name → [sequences, …].

        May be called from any thread.
        """

    @abstractmethod
    def forward(self, inputs: Mapping[str, Tensor]) -> Features:
        """Run the backbone on ``inputs``, which are on its device. Called under ``torch.inference_mode``.

        Of rows with several sequences, `Features.counts` is the caller's to add.
        """

    def forecast(self, features: Features) -> Tensor:
        """What comes next, by the backbone's own head: fp32 [s, horizon, quantiles], in the units of what came in.

        Only of backbones whose facts tell a horizon.
        """
        raise NotImplementedError(f"{self.facts.model_type!r} does not forecast by itself")

    @property
    @abstractmethod
    def lengths(self) -> Sequence[int]:
        """Positions of rows to measure with, ascending: from very short ones to the longest that are usual."""

    @abstractmethod
    def sample(self, row: int, length: int) -> Tokens:
        """A row with one of these `lengths`; another one for every number ``row``."""
