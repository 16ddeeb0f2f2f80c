"""What series are answered: what comes next, gaps filled, how odd each step is; each channel by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from fmplex_backend.backbones.base import Backbone, Features
from fmplex_backend.backbones.facts import SeriesInput
from fmplex_backend.heads.projections import Projection
from fmplex_backend.repository.artifact import Artifact

LEAST_DEVIATION = 1e-12
"""Of a channel that is the same all the time."""


class NativeForecast(Projection):
    """The backbone's own forecasting head, cut to a vFM's horizon and quantiles."""

    def __init__(self, backbone: Backbone, horizon: int, quantiles: Sequence[int]) -> None:
        """``quantiles``: their places among the backbone's own."""
        self._backbone, self._horizon, self._quantiles = backbone, horizon, list(quantiles)

    def __call__(self, features: Features, rows: Tensor) -> Tensor:
        """[rows, most channels, horizon, quantiles]; 0 in channels that a row does not have."""
        chosen = features.of_rows(rows.tolist())
        return chosen.by_row(self._backbone.forecast(chosen)[:, : self._horizon, self._quantiles])


def native_forecast(artifact: Artifact, backbone: Backbone) -> NativeForecast:
    """The projection of head ``native``, which `repository.packed` has checked."""
    own = backbone.facts.input
    assert isinstance(own, SeriesInput)
    assert artifact.horizon is not None
    places = [own.quantiles.index(float(label)) for label in artifact.labels or ()]
    return NativeForecast(backbone, artifact.horizon, places)


class LinearForecast(Projection):
    """What comes next in each channel by a head of the vFM's own, in standard deviations from the channel's mean."""

    def __init__(self, pooling: str, weight: Tensor, bias: Tensor, horizon: int) -> None:
        """``weight`` [horizon · quantiles, width], ``bias`` [horizon · quantiles]."""
        self._pooling, self._weight, self._bias, self._horizon = pooling, weight, bias, horizon

    def __call__(self, features: Features, rows: Tensor) -> Tensor:
        """[rows, most channels, horizon, quantiles]; 0 in channels that a row does not have."""
        chosen = features.of_rows(rows.tolist())
        raw = nn.functional.linear(chosen.of_sequences(self._pooling), self._weight, self._bias)
        steps = raw.view(len(raw), self._horizon, -1).sort(-1).values  # quantiles do not cross
        mean, deviation = _levels(chosen)
        return chosen.by_row(steps * deviation.unsqueeze(-1) + mean.unsqueeze(-1))


def linear_forecast(artifact: Artifact, parameters: Mapping[str, Tensor]) -> LinearForecast:
    """The projection of head ``linear`` of a forecast."""
    assert artifact.horizon is not None
    return LinearForecast(artifact.pooling, parameters["weight"], parameters["bias"], artifact.horizon)


class Steps(Projection):
    """Each step of a series by what the backbone makes of those around it: missing ones filled, or how odd they are."""

    def __init__(
        self, weight: Tensor, bias: Tensor, *, backwards: bool, ahead: int = 0, scale: Tensor | None = None
    ) -> None:
        """``weight`` [steps of a position, width], ``bias`` [steps of a position]; see `Artifact.head`.

        ``ahead``: by how many positions the vectors are before what they tell (after it, of the channel backwards).
        With ``scale`` [1], how far each step is from what was told, in its units; else the series, filled.
        """
        self._weight, self._bias, self._backwards, self._ahead, self._scale = weight, bias, backwards, ahead, scale

    def __call__(self, features: Features, rows: Tensor) -> Tensor:
        """[rows, most channels, steps of the context]; 0 in channels that a row does not have."""
        chosen = features.of_rows(rows.tolist())
        x = _before(chosen.hidden[:, chosen.special :].float(), self._ahead)
        if self._backwards:
            counts = [count // 2 for count in chosen.channels() for _ in range(2)]
            parts = list(zip(*[iter(torch.split(torch.arange(len(x)), counts))] * 2, strict=True))
            forwards, backwards = (torch.cat(places) for places in zip(*parts, strict=True))
            x = torch.cat([x[forwards], x[backwards].flip(1)], -1)
            chosen = replace(
                chosen,
                inputs={name: tensor[forwards] for name, tensor in chosen.inputs.items()},
                levels=None if chosen.levels is None else chosen.levels[forwards],
                counts=counts[::2],
            )
        values, observed = chosen.inputs["values"], chosen.inputs["observed"]
        mean, deviation = _levels(chosen)
        told = nn.functional.linear(x, self._weight, self._bias).flatten(1)
        if self._scale is None:
            return chosen.by_row(torch.where(observed, values, told * deviation + mean))
        off = ((values - mean) / deviation.clamp(min=LEAST_DEVIATION) - told).abs() / self._scale
        return chosen.by_row(torch.where(observed, off, 0.0))


def _levels(features: Features) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each sequence, [s, 1]."""
    assert features.levels is not None
    return features.levels[:, :1], features.levels[:, 1:]


def _before(x: Tensor, positions: int) -> Tensor:
    """[s, t, width] with what lay so many positions before; zeros in front."""
    return nn.functional.pad(x, (0, 0, positions, 0))[:, : x.shape[1]]


def stepwise(artifact: Artifact, parameters: Mapping[str, Tensor]) -> Steps:
    """The projection of kinds ``imputation`` and ``anomaly``."""
    anomaly = artifact.kind == "anomaly"
    return Steps(
        parameters["weight"],
        parameters["bias"],
        backwards=artifact.sequences == 2,
        ahead=int(anomaly),
        scale=parameters["scale"] if anomaly else None,
    )
