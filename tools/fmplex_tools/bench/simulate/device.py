"""What batches cost: named cost models, and a device that may differ from what the queue believes of it."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from fmplex_backend.errors import InvalidInput
from fmplex_backend.scheduling.cost import CostModel
from fmplex_backend.scheduling.interface import Batch

COSTS = {
    "h200": CostModel(alpha=5e-3, beta=2e-6, gamma=2e-5),
    "cpu2": CostModel(alpha=12e-3, beta=1.7e-4, gamma=2e-4, delta=1e-7),
}
"""``h200``: like an H200, launches dominate; ``cpu2``: MiniLM on two cores, as measured."""


def cost_of(spec: str) -> CostModel:
    """A cost model by name, or from ``alpha,beta,gamma,delta`` (the last two may be missing). Raises `InvalidInput`."""
    if spec in COSTS:
        return COSTS[spec]
    try:
        values = [float(part) for part in spec.split(",")]
        if not 2 <= len(values) <= 4:
            raise ValueError
        return CostModel(*values)
    except ValueError:
        raise InvalidInput(
            f"cost model {spec!r}: give {', '.join(COSTS)}, or alpha,beta,gamma,delta in seconds, alpha above 0"
        ) from None


@dataclass(frozen=True)
class Device:
    """What really happens to a batch."""

    cost: CostModel
    noise: float = 0.0
    """σ of the logarithm of a factor that each batch's time is multiplied by; its mean is 1."""
    hiccup_rate: float = 0.0
    """Part of the batches during which the machine stops for ``hiccup_seconds``."""
    hiccup_seconds: float = 0.0

    def seconds(self, batch: Batch, rng: random.Random) -> float:
        """How long ``batch`` takes."""
        took = self.cost.batch((row.size for row in batch.rows), len(batch.shares))
        if self.noise:
            took *= math.exp(rng.gauss(-self.noise * self.noise / 2, self.noise))
        if self.hiccup_rate and rng.random() < self.hiccup_rate:
            took += self.hiccup_seconds
        return took

    def useful(self, batch: Batch) -> float:
        """Seconds for the rows' own tokens: no launch, no padding, no adapters."""
        return sum(self.cost.work(row.size) for row in batch.rows)

    def padding(self, batch: Batch) -> float:
        """Seconds that the rows' padding costs."""
        longest = max(row.size for row in batch.rows)
        return len(batch.rows) * self.cost.work(longest) - self.useful(batch)


def hiccups_of(spec: str) -> tuple[float, float]:
    """``RATE:SECONDS`` → both; empty is none. Raises `InvalidInput`."""
    if not spec:
        return 0.0, 0.0
    try:
        rate, seconds = (float(part) for part in spec.split(":"))
        if not (0 <= rate <= 1 and 0 <= seconds < math.inf):
            raise ValueError
    except ValueError:
        raise InvalidInput(
            f"hiccups {spec!r}: give RATE:SECONDS, e.g. 0.001:2 for 2 s in every thousandth batch"
        ) from None
    return rate, seconds
