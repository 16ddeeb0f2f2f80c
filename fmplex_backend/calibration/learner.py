"""Watches the batches that are served, and gives another fit where the device has come to behave differently.

The queue's k follows how fast the device is; the learner finds out what it is slow at.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import numpy as np

from fmplex_backend.calibration.fit import Fit, common_scale, error_of, fit
from fmplex_backend.messages import Point

REFIT_ERROR = 0.2
"""A mean error above this calls for another fit."""
PATIENCE = 64
"""For so many batches in a row it must have been above."""
WINDOW = 256
"""Most batches that another fit is made from."""
REST = 512
"""Batches until the next attempt."""
BETTER = 0.75
"""Another fit is taken if its error is at most this part of the old one's; noise is in both."""
GRID_WEIGHTS = (0.1, 0.01, 0.001)
"""What the measured grid may count in another fit, relative to the batches: it decides what they leave open."""
GRID_MARGIN = 1.1
"""It counts as much as it can without the error on the batches exceeding this many times the least."""
ERROR_GAIN = 0.05
"""How fast the mean error follows."""


class Learner:
    """Watches how good the predictions are. Pure; used by one thread at a time."""

    def __init__(self, measured: Fit) -> None:
        """``measured`` is the fit in use; its points are the grid, and there may be none."""
        self.error = measured.error
        """Exponentially weighted mean of |predicted - measured| / measured, each at most 1, of the batches served."""
        self._grid = measured
        self._cost = measured.cost
        self._window: deque[Point] = deque(maxlen=WINDOW)
        """Batches since the error was last small enough."""
        self._rest = 0

    def add(self, batch: Point, predicted: float) -> Fit | None:
        """Note a batch for which ``predicted`` seconds were predicted, k included; another fit where one is called for.

        Its cost model is in seconds of the present: k is 1 for it.
        """
        if batch.seconds <= 0:
            return None
        self.error += ERROR_GAIN * (min(1.0, abs(predicted / batch.seconds - 1.0)) - self.error)
        self._rest -= self._rest > 0
        if self.error <= REFIT_ERROR:
            self._window.clear()
            return None
        self._window.append(batch)
        if self._rest or len(self._window) < PATIENCE:
            return None
        return self._refit(list(self._window))

    def _refit(self, batches: list[Point]) -> Fit | None:
        self._rest = REST
        self._window.clear()
        before = error_of(self._cost, batches, common_scale(self._cost, batches))
        if before <= REFIT_ERROR:
            return None  # all are slower or faster alike, and k is on its way there
        fits = [self._beside_grid(batches, weight) for weight in GRID_WEIGHTS]
        least = min(candidate.error for candidate in fits)
        if least > BETTER * before:
            return None
        chosen = next(candidate for candidate in fits if candidate.error <= GRID_MARGIN * least)
        self._cost, self.error = chosen.cost, chosen.error
        return chosen

    def _beside_grid(self, batches: list[Point], weight: float) -> Fit:
        """A fit to ``batches``, and with ``weight`` to the grid at the present speed: traffic may have few shapes."""
        scale = common_scale(self._grid.cost, batches)
        grid = [replace(point, seconds=scale * point.seconds) for point in self._grid.points]
        weights = np.repeat([1.0, weight * len(batches) / max(1, len(grid))], [len(batches), len(grid)])
        cost = fit([*batches, *grid], weights).cost
        return Fit(cost, error_of(cost, batches), tuple(batches))
