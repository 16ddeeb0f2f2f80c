"""The fit of a backbone on a device, kept from start to start.

It is measured at the first start. At later ones a short look tells whether the machine was busy with something else
then, since what disturbs only adds; if so it is measured again.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fmplex_backend.calibration.fit import Fit, fit
from fmplex_backend.messages import DeviceFacts, Measured, Point
from fmplex_backend.scheduling.cost import CostModel

MEASURE_SECONDS = 4.0
"""For the measurement at an engine's first start."""
CHECK_SECONDS = 0.5
"""For a look at whether a fit that was kept still holds."""
FASTER = 1.25
"""A shape that takes this many times less than when it was measured: the device was busy with something else then."""
KEEP_ERROR = 0.3
"""A fit with a larger error is used but not kept: the machine may have been busy with something else."""

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


def obtain(folder: Path, key: Key, measure: Callable[[float], Measured], log: Callable[[str], None]) -> Fit:
    """The fit for ``key``: the one kept in ``folder``, or one to what ``measure(seconds)`` returns, which is then kept.

    Says in ``log`` which it is, and the file to delete to have it measured anew. Raises what ``measure`` raises.
    """
    path = folder / key.file_name
    kept = _read(path, key, log)
    if kept is not None:
        faster = _faster(kept, measure(CHECK_SECONDS))
        if faster is None:
            log(f"cost model of {key}: {kept} (kept in {path}; delete it to measure anew)")
            return kept
        log(f"cost model of {key}: the device was busy when it was measured, {faster}; measuring anew")
    measured = measure(MEASURE_SECONDS)
    fresh = fit(_least(measured.points, kept.points if kept is not None else ()))
    where = f"kept in {path}" if fresh.error <= KEEP_ERROR else "not kept, since the error is large"
    try:
        if fresh.error <= KEEP_ERROR:
            _write(path, key, fresh)
    except OSError as error:
        where = f"cannot be kept in {path}: {error}"
    log(f"cost model of {key}: {fresh} (measured in {measured.seconds:.1f} s, {where})")
    return fresh


_Shape = tuple[int, int, int, int]


def _by_shape(points: Sequence[Point]) -> dict[_Shape, Point]:
    """Points by what they are of; the last number tells apart those of one shape, e.g. with an adapter and without."""
    seen = Counter[tuple[int, int, int]]()
    found: dict[_Shape, Point] = {}
    for point in points:
        shape = (point.rows, point.length, point.vfms)
        found[(*shape, seen[shape])] = point
        seen[shape] += 1
    return found


def _least(now: Sequence[Point], before: Sequence[Point]) -> list[Point]:
    """Every shape at the least time that it was seen to take: whatever disturbs only adds."""
    points = _by_shape(before)
    for shape, point in _by_shape(now).items():
        if shape not in points or point.seconds < points[shape].seconds:
            points[shape] = point
    return list(points.values())


def _faster(kept: Fit, now: Measured) -> str | None:
    """In words, a shape that takes far less time now than what was kept of it; None where there is none."""
    before = _by_shape(kept.points)
    for shape, point in _by_shape(now.points).items():
        if shape in before and before[shape].seconds > FASTER * point.seconds:
            was, takes = before[shape].seconds * 1e3, point.seconds * 1e3
            return f"{point.rows} rows of {point.length} tokens took {was:.3g} ms and take {takes:.3g} ms now"
    return None


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
