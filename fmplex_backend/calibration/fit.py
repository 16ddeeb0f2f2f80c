"""Fits α, β, γ, δ (see `fmplex_backend.scheduling.cost`) to measured batches.

By non-negative least squares over relative residuals: a batch of 10 ms counts as much as one of a second.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fmplex_backend.arrays import Array
from fmplex_backend.messages import Point
from fmplex_backend.scheduling.cost import CostModel

LEAST_ALPHA = 0.01
"""α is at least this part of the quickest batch."""


@dataclass(frozen=True)
class Fit:
    """A cost model and how good it is."""

    cost: CostModel
    error: float
    """Mean of |predicted - measured| / measured over ``points``."""
    points: tuple[Point, ...]
    """What it was fitted to."""

    def __str__(self) -> str:
        cost = self.cost
        quality = (
            f"mean error {self.error:.0%} over {len(self.points)} points" if self.points else "a guess, not measured"
        )
        return (
            f"α {cost.alpha * 1e3:.3g} ms, β {cost.beta * 1e3:.3g} ms/token, γ {cost.gamma * 1e3:.3g} ms/vFM, "
            f"δ {cost.delta * 1e6:.3g} µs/token²; {quality}"
        )


def fit(points: Sequence[Point], weights: Array | None = None) -> Fit:
    """The coefficients with the least Σ w·(predicted / measured - 1)², none negative, α positive.

    ``points`` is not empty, their seconds are positive; ``weights`` [points] are 1 unless given. What the points cannot
    tell apart, e.g. when all have one shape, is divided evenly.
    """
    terms, seconds = _terms(points), _seconds(points)
    least = LEAST_ALPHA * float(seconds.min())
    root = np.ones(len(points)) if weights is None else np.sqrt(weights)
    design = terms * (root / seconds)[:, None]
    target = (1.0 - least / seconds) * root  # of what α has beyond its least
    scale = np.linalg.norm(design, axis=0)
    solution = _non_negative(design / scale, target) / scale
    solution[0] += least
    alpha, beta, gamma, delta = (float(x) for x in solution)
    cost = CostModel(alpha, beta, gamma, delta)
    return Fit(cost, error_of(cost, points), tuple(points))


def _non_negative(design: Array, target: Array) -> Array:
    """argmin ‖design·x - target‖ over x ≥ 0, exactly: the best of the least-squares solutions on every set of columns.

    The optimum is the plain solution on the columns that it uses, and every solution that is not negative is a
    candidate, so the best candidate is the optimum.
    """
    n = design.shape[1]
    best, least = np.zeros(n), float(target @ target)
    for size in range(n, 0, -1):
        for columns in itertools.combinations(range(n), size):
            part = np.linalg.lstsq(design[:, columns], target, rcond=1e-9)[0]
            if (part < 0).any():
                continue
            residual = target - design[:, columns] @ part
            if (loss := float(residual @ residual)) < least - 1e-12:
                best, least = np.zeros(n), loss
                best[list(columns)] = part
    return best


def error_of(cost: CostModel, points: Sequence[Point], scale: float = 1.0) -> float:
    """Mean of |predicted - measured| / measured, predictions multiplied by ``scale``."""
    return float(np.mean(np.abs(scale * _predicted(cost, points) / _seconds(points) - 1.0)))


def common_scale(cost: CostModel, points: Sequence[Point]) -> float:
    """The k that fits ``points`` best."""
    ratio = _predicted(cost, points) / _seconds(points)
    return float(ratio.sum() / (ratio @ ratio))


def _predicted(cost: CostModel, points: Sequence[Point]) -> Array:
    predicted: Array = _terms(points) @ np.array([cost.alpha, cost.beta, cost.gamma, cost.delta])
    return predicted


def _terms(points: Sequence[Point]) -> Array:
    """What α, β, γ, δ are multiplied by: [points, 4]."""
    return np.array([(1.0, p.rows * p.length, p.vfms, p.rows * p.length**2) for p in points])


def _seconds(points: Sequence[Point]) -> Array:
    return np.array([p.seconds for p in points])
