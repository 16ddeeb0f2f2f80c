"""vFMs that forecast: by their backbone's own head, or by one that is learnt from series of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from fmplex_backend.backbones.facts import SeriesInput
from fmplex_backend.errors import InvalidInput
from fmplex_backend.repository.artifact import Artifact, Quality
from fmplex_backend.repository.modalities import SeriesSpec
from fmplex_tools.tasks.artifact_writer import now
from fmplex_tools.tasks.backbone import Backbone
from fmplex_tools.tasks.data import Examples
from fmplex_tools.tasks.heads import Array, Head, fit_ridge
from fmplex_tools.tasks.making import NewTask, TaskResult
from fmplex_tools.tasks.windows import Past, cut_pasts

GOLDEN_STEPS = 96
QUANTILES = (0.1, 0.5, 0.9)
POOLING = "last+mean"
MOST_PIECES = 2048
HELD = 0.2
"""Part of the training pieces, the latest of each series, from which the spread of errors is learnt."""


def create_forecast(
    repository: Path,
    name: str,
    *,
    fm: str,
    horizon: int | None = None,
    quantiles: Sequence[float] = (),
    encoder: SeriesSpec | None = None,
    parameters: Mapping[str, str] | None = None,
    backbone: Backbone | None = None,
    sign_with: Ed25519PrivateKey | None = None,
) -> TaskResult:
    """Put a vFM that forecasts by its backbone's own head into ``repository``; nothing is trained.

    ``horizon`` is the backbone's own unless told, ``quantiles`` are all of the backbone's. Raises `FMplexError` where
    the backbone forecasts none such.
    """
    made = NewTask.begin(repository, name, fm, parameters, backbone, sign_with)
    own = _series_input(made)
    if not own.horizon:
        raise InvalidInput(
            f"physical FM {fm!r}: its backbone {made.backbone.facts.spec!r} does not forecast by itself; give --data "
            "to learn from"
        )
    encoder = encoder or SeriesSpec()
    artifact = Artifact(
        kind="forecast",
        backbone=made.backbone.ref,
        pooling="none",
        head="native",
        labels=_labels(quantiles or own.quantiles),
        horizon=horizon or own.horizon,
        encoder=encoder,
        created=now(),
    )
    return made.publish(artifact, None, [_a_series(encoder)])


def train_forecast(
    repository: Path,
    name: str,
    examples: Examples,
    *,
    fm: str,
    horizon: int,
    quantiles: Sequence[float] = QUANTILES,
    pooling: str = POOLING,
    encoder: SeriesSpec | None = None,
    parameters: Mapping[str, str] | None = None,
    backbone: Backbone | None = None,
    sign_with: Ed25519PrivateKey | None = None,
) -> TaskResult:
    """Put a vFM into ``repository`` that forecasts by a linear head on each channel's own vectors.

    The head is learnt from all but the last ``horizon`` steps of each series, which it is then tested on: ``skill`` is
    by what part its absolute error is below that of the last value going on. Quantiles are the point forecast and what
    it was off by, step by step, on the latest fifth of the training pieces. Raises `FMplexError`.
    """
    made = NewTask.begin(repository, name, fm, parameters, backbone, sign_with)
    own = _series_input(made)
    wanted = tuple(sorted(quantiles))
    if not wanted or not 0 < wanted[0] <= wanted[-1] < 1 or len(set(wanted)) < len(wanted):
        raise InvalidInput(f"quantiles {list(quantiles)}: give distinct numbers between 0 and 1")
    encoder = encoder or SeriesSpec()
    train, test = cut_pasts(examples.rows, horizon)
    train = [train[place] for place in np.unique(np.linspace(0, len(train) - 1, MOST_PIECES).astype(int))]
    x, y, _ = _learnt_from(made.backbone, train, encoder, pooling)
    if not len(y):
        raise InvalidInput("no series has all values of any steps that could be forecast; fill its gaps")
    head = _quantile_head(x, y, wanted)
    tested = _test(made.backbone, test, encoder, pooling, head, len(wanted))
    baseline, other = "last value", 0.0
    if own.horizon >= horizon:
        baseline, other = "the backbone's own head", _native_skill(made.backbone, test, encoder, horizon)
    artifact = Artifact(
        kind="forecast",
        backbone=made.backbone.ref,
        pooling=pooling,
        head="linear",
        labels=_labels(wanted),
        horizon=horizon,
        encoder=encoder,
        quality=Quality(
            metric="skill",
            value=tested,
            baseline_metric=baseline,
            baseline=other,
            train_rows=len(train),
            test_rows=len(test),
            split=f"the last {horizon} steps of each series",
        ),
        created=now(),
        source=examples.source,
    )
    return made.publish(artifact, head, [_short(piece.past) for piece in test])


def _series_input(made: NewTask) -> SeriesInput:
    own = made.backbone.facts.input
    if not isinstance(own, SeriesInput):
        raise InvalidInput(f"physical FM {made.fm!r}: its backbone reads {own.modality}, and forecasts are of series")
    return own


def _labels(quantiles: Sequence[float]) -> tuple[str, ...]:
    return tuple(f"{quantile:g}" for quantile in quantiles)


def _learnt_from(
    backbone: Backbone, pieces: Sequence[Past], encoder: SeriesSpec, pooling: str
) -> tuple[Array, Array, Array]:
    """Of each channel of each piece whose next steps all have values: vectors [n, width]; these steps [n, horizon], in
    standard deviations from the channel's mean; and that mean and deviation, [n, 2]."""
    encoded = backbone.encode([piece.past for piece in pieces], None, encoder)
    x: dict[int, Array] = {}
    levels: dict[int, Array] = {}
    for rows, features in backbone.run(encoded):
        counts = features.channels()
        assert features.levels is not None
        for found, tensor in ((x, features.of_sequences(pooling)), (levels, features.levels)):
            found |= zip(rows, (part.cpu().numpy() for part in torch.split(tensor, counts)), strict=True)
    order = range(len(pieces))
    vectors, known = (np.concatenate([found[row] for row in order]) for found in (x, levels))
    ahead = np.concatenate([piece.ahead for piece in pieces]).astype(np.float32)
    scaled = (ahead - known[:, :1]) / np.maximum(known[:, 1:], 1e-6)
    kept = np.isfinite(scaled).all(1)
    return vectors[kept], scaled[kept], known[kept]


def _quantile_head(x: Array, y: Array, quantiles: Sequence[float]) -> Head:
    """A point forecast, and for each step and quantile what lies between them; [horizon · quantiles] outputs."""
    held = max(1, round(HELD * len(x)))
    first = fit_ridge(x[:-held], y[:-held]) if len(x) > 2 * held else None
    point = fit_ridge(x, y)
    errors = y[-held:] - first.apply(x[-held:]) if first else y - point.apply(x)
    offsets = np.quantile(errors, quantiles, axis=0).T  # [horizon, quantiles]
    weight = np.repeat(point.weight, len(quantiles), 0)
    return Head(weight, (point.bias[:, None] + offsets).reshape(-1).astype(np.float32))


def _test(
    backbone: Backbone, pieces: Sequence[Past], encoder: SeriesSpec, pooling: str, head: Head, quantiles: int
) -> float:
    """Skill of the middle quantile."""
    x, y, levels = _learnt_from(backbone, pieces, encoder, pooling)
    middle = np.sort(head.apply(x).reshape(len(x), -1, quantiles))[..., quantiles // 2]
    return _skill(np.abs(middle - y) * levels[:, 1:], pieces)


def _native_skill(backbone: Backbone, pieces: Sequence[Past], encoder: SeriesSpec, horizon: int) -> float:
    own = backbone.facts.input
    assert isinstance(own, SeriesInput)
    middle = min(range(len(own.quantiles)), key=lambda place: abs(own.quantiles[place] - 0.5))
    encoded = backbone.encode([piece.past for piece in pieces], None, encoder)
    errors = []
    for rows, features in backbone.run(encoded):
        told = backbone.forecast(features)[:, :horizon, middle].cpu().numpy()
        truth = np.concatenate([pieces[row].ahead for row in rows])
        errors.append(np.abs(told - truth))
    whole = np.concatenate(errors)
    return _skill(whole[np.isfinite(whole).all(1)], pieces)


def _skill(errors: NDArray[np.float32], pieces: Sequence[Past]) -> float:
    channels = [both for piece in pieces for both in zip(piece.past, piece.ahead, strict=True)]
    naive = [np.abs(ahead - _last(past)) for past, ahead in channels if np.isfinite(ahead).all()]
    return float(1 - errors.mean() / max(float(np.mean(naive)), 1e-12))


def _last(channel: NDArray[np.float32]) -> float:
    return float(channel[np.isfinite(channel)][-1])


def _short(series: NDArray[np.float32]) -> NDArray[np.float32]:
    """Its last steps, for a golden row."""
    return series[:, -GOLDEN_STEPS:]


def _a_series(encoder: SeriesSpec) -> NDArray[np.float32]:
    """Waves on a slope, for the golden row."""
    steps = np.arange(min(GOLDEN_STEPS, encoder.max_length or GOLDEN_STEPS))
    waves = [10 * np.sin(2 * np.pi * steps / (6 + 2 * channel)) + steps / 8 for channel in range(encoder.channels or 1)]
    return np.array(waves, np.float32).round(2)
