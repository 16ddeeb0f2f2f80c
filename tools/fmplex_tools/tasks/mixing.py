"""What the channels of series have in common, as a few channels for the backbone to see in their place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fmplex_backend.errors import InvalidInput
from fmplex_backend.repository.modalities import EncoderSpec, SeriesSpec

DIGITS = 7


def learned_mix(encoder: EncoderSpec, rows: Sequence[Any], channels: int | None) -> EncoderSpec:
    """``encoder`` with a mix into so many ``channels``: the first principal components of the standardized channels of
    ``rows``, as those are in the channels' own units. Without ``channels``, as it is. Raises `InvalidInput`.
    """
    if channels is None:
        return encoder
    if not isinstance(encoder, SeriesSpec) or encoder.channels is None:
        raise InvalidInput("--mix is about series that all have the same number of channels")
    if channels >= encoder.channels:
        raise InvalidInput(f"--mix {channels}: the series have {encoder.channels} channels; mix them into fewer")
    from sklearn.decomposition import PCA

    steps = np.concatenate([np.asarray(row, np.float64).T for row in rows])
    steps = steps[np.isfinite(steps).all(1)]
    if len(steps) <= channels:
        raise InvalidInput(f"--mix {channels}: the series have {len(steps)} steps at which every channel has a value")
    deviation = steps.std(0)
    deviation[deviation < 1e-12] = 1.0
    found = PCA(channels).fit((steps - steps.mean(0)) / deviation)
    weight = [[float(f"{number:.{DIGITS}g}") for number in line] for line in found.components_ / deviation]
    return SeriesSpec.model_validate(encoder.model_dump() | {"mix": {"weight": weight}})
