"""The input side of time-series vFMs: channels over time → what the backbone sees of each. No torch.

A series that is shorter than what the backbone sees is filled in front with steps that have no value. Steps without a
value are given their channel's mean, which says nothing once the backbone has taken the mean out.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fmplex_backend.arrays import Array
from fmplex_backend.backbones.facts import SeriesInput
from fmplex_backend.encoders.base import EncodedRow, Encoder, check_tensors
from fmplex_backend.errors import InvalidInput
from fmplex_backend.repository.modalities import MOST_CHANNELS, ChannelMix, EncoderSpec, SeriesSpec


class SeriesEncoder(Encoder):
    """Checks and fills for every vFM of one backbone."""

    def __init__(self, own: SeriesInput) -> None:
        self._own = own

    def encode(self, spec: EncoderSpec, inputs: Mapping[str, Array], *, offsets: bool = False) -> list[EncodedRow]:
        """See `Encoder`; a row is ``series`` float32 and ``observed`` bool, both [sequences, context].

        A sequence for each channel; with ``spec.backwards`` then one more for each, from its last step to its first.
        """
        assert isinstance(spec, SeriesSpec)
        rows = check_tensors(spec, inputs)
        _, channels, steps = inputs["series"].shape
        if spec.observed and inputs["observed"].shape != inputs["series"].shape:
            raise InvalidInput(
                f"input 'observed' has shape {list(inputs['observed'].shape)}; it is that of 'series', "
                f"{list(inputs['series'].shape)}"
            )
        if not channels or not steps:
            raise InvalidInput(f"input 'series' has {channels} channels of {steps} steps; it is empty")
        if channels != (spec.channels or channels) or channels > MOST_CHANNELS:
            wanted = spec.channels or f"at most {MOST_CHANNELS}"
            raise InvalidInput(f"input 'series' has {channels} channels; it has {wanted}")
        limit = spec.max_length or self._own.context
        if steps > limit and not spec.truncation:
            raise InvalidInput(f"input 'series' has {steps} steps, the limit is {limit}")
        kept = slice(max(0, steps - limit), None)
        observed = inputs["observed"][..., kept] if spec.observed else None
        return [
            self._row(row, spec, inputs["series"][row, :, kept], None if observed is None else observed[row])
            for row in range(rows)
        ]

    def _row(self, row: int, spec: SeriesSpec, series: Array, observed: Array | None) -> EncodedRow:
        finite = np.isfinite(series)
        known = np.ones(series.shape, bool) if observed is None else observed
        if (known & ~finite).any():
            channel, step = np.argwhere(known & ~finite)[0]
            raise InvalidInput(
                f"row {row}: series is {series[channel, step]} at channel {channel}, step {step}; what has no value is "
                "told by the input 'observed' (encoder.observed)"
            )
        if not known.any(1).all():
            raise InvalidInput(f"row {row}: series has no value at all in channel {int(np.argmin(known.any(1)))}")
        if spec.mix is not None:
            series, known = _mixed(spec.mix, np.where(known, series, 0), known)
            if not known.any():
                raise InvalidInput(f"row {row}: series has no step at which every channel has a value")
        channels, steps = series.shape
        values = np.where(known, series, 0).astype(np.float64)
        means = values.sum(1) / known.sum(1)
        whole = np.repeat(means.astype(np.float32)[:, None], self._own.context, 1)
        mask = np.zeros((channels, self._own.context), bool)
        whole[:, -steps:] = np.where(known, series, whole[:, -steps:])
        mask[:, -steps:] = known
        if spec.backwards:
            whole, mask = (np.concatenate([array, array[:, ::-1]]) for array in (whole, mask))
        return EncodedRow({"series": whole, "observed": mask}, len(whole) * self._own.positions, steps=steps)


def _mixed(mix: ChannelMix, series: Array, known: Array) -> tuple[Array, Array]:
    """Channels by ``mix``, and at which steps they have a value: where all have that came in."""
    made = np.array(mix.weight, np.float32) @ series
    if mix.bias is not None:
        made += np.array(mix.bias, np.float32)[:, None]
    return made, np.broadcast_to(known.all(0), made.shape)
