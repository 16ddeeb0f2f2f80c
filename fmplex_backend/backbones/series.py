"""What time-series backbones have in common: every channel of a row goes through by itself, as a sequence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fmplex_backend.backbones.base import Backbone
from fmplex_backend.backbones.facts import SeriesInput
from fmplex_backend.messages import Tokens


def levels_of(values: Tensor, observed: Tensor) -> Tensor:
    """Mean and standard deviation of what is ``observed`` of each of ``values`` [s, context], [s, 2]."""
    count = observed.sum(1, keepdim=True)
    mean = (values * observed).sum(1, keepdim=True) / count
    return torch.cat([mean, (((values - mean) ** 2 * observed).sum(1, keepdim=True) / count).sqrt()], -1)


class SeriesBackbone(Backbone):
    """Its `forward` gets ``values`` fp32 and ``observed`` bool, [channels of all rows, context]."""

    usual_channels: Sequence[int]
    """Of rows to measure with, ascending."""

    @property
    def _own(self) -> SeriesInput:
        assert isinstance(self.facts.input, SeriesInput)
        return self.facts.input

    def sequences(self, rows: Sequence[Tokens]) -> list[int] | None:
        """One for each channel."""
        return [len(row["series"]) for row in rows]

    def collate(self, rows: Sequence[Tokens]) -> dict[str, Tensor]:
        """See the class."""
        values, observed = (np.concatenate([row[name] for row in rows]) for name in ("series", "observed"))
        return {"values": torch.from_numpy(values), "observed": torch.from_numpy(observed)}

    @property
    def lengths(self) -> Sequence[int]:
        """See `Backbone`."""
        return [channels * self._own.positions for channels in self.usual_channels]

    def sample(self, row: int, length: int) -> Tokens:
        """Channels of noise."""
        shape = (length // self._own.positions, self._own.context)
        values = np.random.default_rng(row).standard_normal(shape, np.float32)
        return {"series": values, "observed": np.ones(shape, bool)}
