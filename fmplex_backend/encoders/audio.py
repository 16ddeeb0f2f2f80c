"""The input side of audio vFMs: samples from the wire → the window that the backbone hears. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from fmplex_backend.arrays import Array
from fmplex_backend.backbones.facts import AudioInput
from fmplex_backend.encoders.base import EncodedRow, Encoder, check_tensors
from fmplex_backend.errors import InvalidInput
from fmplex_backend.repository.modalities import AudioSpec, EncoderSpec

LOUDEST = 4.0
"""Samples beyond it are no clipped sound between -1 and 1, but integers that nobody scaled."""


class AudioEncoder(Encoder):
    """Checks and cuts for every vFM of one backbone."""

    def __init__(self, own: AudioInput) -> None:
        self._own = own

    def encode(self, spec: EncoderSpec, inputs: Mapping[str, Array], *, offsets: bool = False) -> list[EncodedRow]:
        """See `Encoder`; a row is ``audio`` float32 [samples of the window], silent behind its own end."""
        assert isinstance(spec, AudioSpec)
        rows = check_tensors(spec, inputs)
        window = self._window(spec)
        return [
            EncodedRow({"audio": self._row(inputs, row, window, spec)}, window // self._own.samples)
            for row in range(rows)
        ]

    def _window(self, spec: AudioSpec) -> int:
        """In samples, of whole positions."""
        seconds = spec.seconds or self._own.seconds
        return math.ceil(round(seconds * self._own.sample_rate, 6) / self._own.samples) * self._own.samples

    def _row(self, inputs: Mapping[str, Array], row: int, window: int, spec: AudioSpec) -> Array:
        audio, rate = inputs["audio"][row], int(inputs["sample_rate"][row, 0])
        if rate != self._own.sample_rate:
            raise InvalidInput(
                f"row {row}: sample_rate is {rate}; the backbone hears {self._own.sample_rate} samples a second, so "
                "resample it"
            )
        if not len(audio):
            raise InvalidInput(f"row {row}: audio has no samples")
        if len(audio) > window and not spec.truncation:
            raise InvalidInput(f"row {row}: audio has {len(audio)} samples, the limit is {window} (encoder.seconds)")
        audio = audio[:window]
        if not np.isfinite(audio).all():
            raise InvalidInput(f"row {row}: audio is {audio[~np.isfinite(audio)][0]} at sample {_first_bad(audio)}")
        if (loudest := float(np.abs(audio).max())) > LOUDEST:
            raise InvalidInput(f"row {row}: audio reaches {loudest:g}; samples lie between -1 and 1: scale them")
        whole = np.zeros(window, np.float32)
        whole[: len(audio)] = audio
        return whole


def _first_bad(audio: Array) -> int:
    return int(np.flatnonzero(~np.isfinite(audio))[0])
