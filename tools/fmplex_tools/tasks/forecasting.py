"""A vFM that forecasts by its backbone's own head: nothing is trained, horizon and quantiles are the vFM's."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from fmplex_backend.backbones.facts import SeriesInput
from fmplex_backend.errors import InvalidInput
from fmplex_backend.repository.artifact import Artifact
from fmplex_backend.repository.modalities import SeriesSpec
from fmplex_tools.tasks.artifact_writer import now, write_version
from fmplex_tools.tasks.backbone import Backbone, load_backbone, read_settings
from fmplex_tools.tasks.making import TaskResult, check_new, publish_new

GOLDEN_STEPS = 96


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
    """Put a forecasting vFM into ``repository`` on the lowest free port of ``fm``.

    ``horizon`` is the backbone's own unless told, ``quantiles`` are all of the backbone's. Raises `FMplexError` where
    the backbone forecasts none such.
    """
    started = time.monotonic()
    parameters = dict(parameters or {})
    check_new(repository, name, parameters)
    settings = read_settings(repository, fm)
    backbone = backbone or load_backbone(repository, fm)
    own = backbone.facts.input
    if not isinstance(own, SeriesInput) or not own.horizon:
        raise InvalidInput(f"physical FM {fm!r}: its backbone {backbone.facts.spec!r} does not forecast by itself")
    encoder = encoder or SeriesSpec()
    artifact = Artifact(
        kind="forecast",
        backbone=backbone.ref,
        pooling="none",
        head="native",
        labels=tuple(f"{quantile:g}" for quantile in quantiles or own.quantiles),
        horizon=horizon or own.horizon,
        encoder=encoder,
        created=now(),
    )
    port, size = publish_new(
        repository,
        name,
        fm,
        artifact,
        lambda version: write_version(version, artifact, None),
        backbone=backbone,
        settings=settings,
        parameters=parameters,
        rows=[_a_series(encoder)],
        sign_with=sign_with,
    )
    return TaskResult(name, 1, port, artifact, None, None, 0, size, time.monotonic() - started)


def _a_series(encoder: SeriesSpec) -> NDArray[np.float32]:
    """Waves on a slope, for the golden row."""
    steps = np.arange(min(GOLDEN_STEPS, encoder.max_length or GOLDEN_STEPS))
    waves = [10 * np.sin(2 * np.pi * steps / (6 + 2 * channel)) + steps / 8 for channel in range(encoder.channels or 1)]
    return np.array(waves, np.float32).round(2)
