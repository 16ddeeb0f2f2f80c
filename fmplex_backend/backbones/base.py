"""What a backbone plug-in is: a family of models behind one small interface. Torch lives on this side only."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fmplex_backend.backbones.facts import BackboneFacts
from fmplex_backend.messages import Tokens


@dataclass
class Features:
    """What the backbone made of a batch of n rows, t positions wide; positions beyond a row's own are masked."""

    hidden: Tensor
    """[n, t, hidden], in the backbone's dtype."""
    mask: Tensor
    """[n, t] int64, 1 where the row has a position."""
    inputs: Mapping[str, Tensor]
    """What went in, each [n, t]."""
    pooler_output: Tensor | None = None
    """[n, hidden]: the backbone's own pooler, where it has a trained one."""
    _pooled: dict[str, Tensor] = field(default_factory=dict)

    def pooled(self, pooling: str) -> Tensor:
        """What a head reads, fp32: one vector a row, [n, hidden], or for ``none`` one a position, [n, t, hidden].

        A row's vector is the ``mean`` over its positions, the first (``cls``) or the ``last``.
        """
        if pooling not in self._pooled:
            self._pooled[pooling] = self._pool(pooling)
        return self._pooled[pooling]

    def _pool(self, pooling: str) -> Tensor:
        if pooling == "none":
            return self.hidden.float()
        if pooling == "mean":
            mask = self.mask.unsqueeze(-1).to(torch.float32)
            return (self.hidden.float() * mask).sum(1) / mask.sum(1)
        if pooling == "cls":
            return self.hidden[:, 0].float()
        if pooling == "last":
            last = self.mask.sum(1) - 1
            return self.hidden[torch.arange(len(last), device=last.device), last].float()
        raise ValueError(f"no pooling {pooling!r}")


class Backbone(ABC):
    """One loaded physical backbone. Not thread-safe; the engine runs one batch at a time."""

    facts: BackboneFacts
    model: nn.Module
    """In eval mode, on its device, requires no gradient. Adapters hook the layers that `facts.layers` names."""

    @abstractmethod
    def collate(self, rows: Sequence[Tokens]) -> dict[str, Tensor]:
        """Pad ``rows`` to the longest, in host memory: input name → [n, t]. May be called from any thread."""

    @abstractmethod
    def forward(self, inputs: Mapping[str, Tensor]) -> Features:
        """Run the backbone on ``inputs``, which are on its device. Called under ``torch.inference_mode``."""
