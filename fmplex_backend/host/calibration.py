"""The cost model's coefficients: fitted to what an engine measures at its start, kept on disk, fitted anew in service.

`fit` finds α, β, γ, δ (see `fmplex_backend.scheduling.cost`) by non-negative least squares over relative residuals: a
batch of 10 ms counts as much as one of a second. `obtain` takes the fit of the same backbone on the same device from
the cache, or has the device measured. `Learner` watches the batches that are served, and gives another fit where the
device has come to behave differently: k follows how fast it is, the learner what it is slow at.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fmplex_backend.arrays import Array
from fmplex_backend.messages import DeviceFacts, Measured, Point
from fmplex_backend.scheduling.cost import CostModel

MEASURE_SECONDS = 4.0
"""For the measurement at an engine's first start."""
KEEP_ERROR = 0.3
"""A fit with a larger error is used but not kept: the machine may have been busy with something else."""
LEAST_ALPHA = 0.01
"""α is at least this part of the quickest batch."""

# ---- the fit ----


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
        return (
            f"α {cost.alpha * 1e3:.3g} ms, β {cost.beta * 1e3:.3g} ms/token, γ {cost.gamma * 1e3:.3g} ms/vFM, "
            f"δ {cost.delta * 1e6:.3g} µs/token²; mean error {self.error:.0%} over {len(self.points)} points"
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


# ---- what is kept ----

_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Key(_Strict):
    """What a fit holds for."""

    backbone: str
    """Its fingerprint."""
    device: str
    dtype: str
    threads: int
    software: str
    max_rows: int
    """Most rows in a batch, up to which it was measured."""

    @classmethod
    def of(cls, fingerprint: str, device: DeviceFacts, dtype: str, max_rows: int) -> Key:
        """The key of a backbone's fit on ``device``."""
        return cls(
            backbone=fingerprint,
            device=device.name,
            dtype=dtype,
            threads=device.threads,
            software=device.software,
            max_rows=max_rows,
        )

    @property
    def file_name(self) -> str:
        """Readable, and different for different keys."""
        device = re.sub(r"[^A-Za-z0-9]+", "-", self.device).strip("-")[:40]
        digest = hashlib.sha256(self.model_dump_json().encode()).hexdigest()
        return f"{self.backbone.removeprefix('sha256:')[:12]}-{device}-{self.dtype}-{digest[:12]}.json"

    def __str__(self) -> str:
        threads = f"/{self.threads} threads" if self.threads else ""
        return f"{self.backbone[:19]}…/{self.device}/{self.dtype}{threads}"


class _StoredPoint(_Strict):
    rows: Annotated[int, Field(ge=1)]
    length: Annotated[int, Field(ge=1)]
    vfms: Annotated[int, Field(ge=1)]
    seconds: _Positive


class _Stored(_Strict):
    """A file of the cache."""

    format: Literal[1] = 1
    key: Key
    alpha: _Positive
    beta: _NotNegative
    gamma: _NotNegative
    delta: _NotNegative
    error: _NotNegative
    points: Annotated[list[_StoredPoint], Field(min_length=1)]


def obtain(folder: Path, key: Key, measure: Callable[[], Measured], log: Callable[[str], None]) -> Fit:
    """The fit for ``key``: the one kept in ``folder``, or one to what ``measure`` returns, which is then kept there.

    Says in ``log`` which it is, and the file to delete to have it measured anew. Raises what ``measure`` raises.
    """
    path = folder / key.file_name
    if (kept := _read(path, key, log)) is not None:
        log(f"cost model of {key}: {kept} (kept in {path}; delete it to measure anew)")
        return kept
    measured = measure()
    fresh = fit(measured.points)
    where = f"kept in {path}" if fresh.error <= KEEP_ERROR else "not kept, since the error is large"
    try:
        if fresh.error <= KEEP_ERROR:
            _write(path, key, fresh)
    except OSError as error:
        where = f"cannot be kept in {path}: {error}"
    log(f"cost model of {key}: {fresh} (measured in {measured.seconds:.1f} s, {where})")
    return fresh


def _read(path: Path, key: Key, log: Callable[[str], None]) -> Fit | None:
    try:
        stored = _Stored.model_validate_json(path.read_bytes())
        if stored.key != key:
            raise ValueError("it is another device's or backbone's")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:  # pydantic's ValidationError is a ValueError
        reason = f"{error.error_count()} errors in it" if isinstance(error, ValidationError) else str(error)
        log(f"cost model of {key}: {path} cannot be used ({reason}); measuring anew")
        return None
    cost = CostModel(stored.alpha, stored.beta, stored.gamma, stored.delta)
    return Fit(cost, stored.error, tuple(Point(p.rows, p.length, p.vfms, p.seconds) for p in stored.points))


def _write(path: Path, key: Key, fresh: Fit) -> None:
    """Whole or not at all; the last of several writers wins."""
    cost = fresh.cost
    points = [_StoredPoint(rows=n, length=t, vfms=k, seconds=s) for n, t, k, s in map(astuple, fresh.points)]
    stored = _Stored(
        key=key,
        alpha=cost.alpha,
        beta=cost.beta,
        gamma=cost.gamma,
        delta=cost.delta,
        error=fresh.error,
        points=points,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(prefix=f".{path.stem}-", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(stored.model_dump_json(indent=1))
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


# ---- in service ----

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
