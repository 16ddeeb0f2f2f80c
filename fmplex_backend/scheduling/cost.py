"""What a batch costs, and who pays which part of it.

A batch of n rows of K vFMs, its longest row of length L, takes::

    k · (α + n·u(L) + γ·K)        u(L) = β·L + δ·L²

seconds of device time: α to launch it at all, u for each row as long as the longest (all are padded to it), γ for each
distinct adapter and head. α, β, γ, δ are fitted when an engine starts; k follows the device from batch to batch.

The charge rule: a vFM pays an equal part of α for each of its rows, the work of its own rows *unpadded*, and γ. The
parts are scaled to what the batch took, so that padding and noise are borne by all in proportion. Twins, rows that are
the same to the backbone, run as one row and share what it costs; n counts them once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CostModel:
    """α, β, γ, δ, in seconds, per token, per vFM and per token². ``alpha`` is positive, the others are not negative."""

    alpha: float
    beta: float
    gamma: float = 0.0
    delta: float = 0.0

    def __post_init__(self) -> None:
        """Raises ValueError where a coefficient makes no sense."""
        good = self.alpha > 0 and self.beta >= 0 and self.gamma >= 0 and self.delta >= 0
        if not good or max(self.alpha, self.beta, self.gamma, self.delta) == float("inf"):
            raise ValueError(f"{self}: alpha must be positive, the others not negative, all finite")

    def work(self, size: int) -> float:
        """u(L): seconds for one row of ``size`` tokens, apart from the launch."""
        return size * (self.beta + size * self.delta)

    def batch(self, sizes: Iterable[int], vfms: int) -> float:
        """Seconds for a batch of rows of these ``sizes``, of ``vfms`` distinct vFMs, at k = 1."""
        sizes = list(sizes)
        return self.alpha + len(sizes) * self.work(max(sizes)) + self.gamma * vfms

    def part(self, rows: float, work: float, batch_rows: int) -> float:
        """What a vFM with ``rows`` rows of ``work`` seconds in all would pay of an unpadded batch of ``batch_rows``."""
        return self.alpha * rows / batch_rows + work + self.gamma


UNKNOWN = CostModel(alpha=5e-3, beta=5e-5)
"""Until a device has been measured."""
