"""One row of a task's data, of whatever modality, as a request of one row has it."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmplex_backend.repository.modalities import EncoderSpec, ImageSpec, SeriesSpec, TextSpec


@dataclass(frozen=True, eq=False)
class Sound:
    """A row of audio: samples between -1 and 1."""

    samples: NDArray[np.float32]
    rate: int
    """Samples a second."""


Row = Any
"""A text, str; an image file, bytes; a `Sound`; a series, [channels, time], NaN where it has no value."""


def tensors_of(row: Any, pair: str | None, spec: EncoderSpec) -> dict[str, NDArray[Any]]:
    """What a client would send for ``row``, [1, …] each, to a vFM whose encoder is ``spec``."""
    if isinstance(spec, TextSpec):
        texts = {"text": row} | ({} if pair is None else {"text_pair": pair})
        return {name: np.array([[text.encode()]], object) for name, text in texts.items()}
    if isinstance(spec, ImageSpec):
        if spec.pixels:
            return {"pixels": np.asarray(row, np.uint8)[None]}
        return {"image": np.array([[row]], object)}
    if isinstance(spec, SeriesSpec):
        series = np.asarray(row, np.float32)[None]
        return {"series": series} | ({"observed": np.isfinite(series)} if spec.observed else {})
    return {"audio": row.samples[None].astype(np.float32), "sample_rate": np.array([[row.rate]], np.int32)}


def row_key(row: Any, pair: str | None = None) -> Hashable:
    """What makes two rows the same: the words of a text, ignoring case and white space; else every byte."""
    if isinstance(row, str):
        words = " ".join(row.casefold().split())
        return words if pair is None else (words, " ".join(pair.casefold().split()))
    data = row if isinstance(row, bytes) else np.asarray(row.samples if isinstance(row, Sound) else row).tobytes()
    return blake2b(data, digest_size=16).digest()
