"""One row of a task's data, of whatever modality, as a request of one row has it."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmplex_backend.errors import InvalidInput
from fmplex_backend.repository.modalities import EncoderSpec, ImageSpec, ImageTextSpec, SeriesSpec, TextSpec
from fmplex_client import InvalidRequest
from fmplex_client.rows import read_wav


@dataclass(frozen=True, eq=False)
class Sound:
    """A row of audio: samples between -1 and 1."""

    samples: NDArray[np.float32]
    rate: int
    """Samples a second."""


Row = Any
"""A text, str; an image's file, bytes; a `Sound`; a series, [channels, time], NaN where it has no value; a file and a
text."""


def tensors_of(row: Any, pair: str | None, spec: EncoderSpec) -> dict[str, NDArray[Any]]:
    """What a client would send for ``row``, [1, …] each, to a vFM whose encoder is ``spec``."""
    if isinstance(spec, TextSpec):
        texts = {"text": row} | ({} if pair is None else {"text_pair": pair})
        return {name: np.array([[text.encode()]], object) for name, text in texts.items()}
    if isinstance(spec, ImageTextSpec):
        parts = row if spec.image and spec.text else (row,)
        specs = [part for part in (spec.image, spec.text) if part]
        return {k: v for own, part in zip(parts, specs, strict=True) for k, v in tensors_of(own, None, part).items()}
    if isinstance(spec, ImageSpec):
        if spec.pixels:
            return {"pixels": np.asarray(row, np.uint8)[None]}
        return {"image": np.array([[row]], object)}
    if isinstance(spec, SeriesSpec):
        series = np.asarray(row, np.float32)[None]
        if not spec.observed:
            return {"series": series}
        known = np.isfinite(series)
        return {"series": np.where(known, series, 0), "observed": known}
    return {"audio": row.samples[None].astype(np.float32), "sample_rate": np.array([[row.rate]], np.int32)}


def row_key(row: Any, pair: str | None = None) -> Hashable:
    """What makes two rows the same: the words of a text, ignoring case and white space; else every byte."""
    if isinstance(row, str):
        words = " ".join(row.casefold().split())
        return words if pair is None else (words, " ".join(pair.casefold().split()))
    if isinstance(row, tuple):
        return tuple(row_key(part) for part in row)
    data = row if isinstance(row, bytes) else np.asarray(row.samples if isinstance(row, Sound) else row).tobytes()
    return blake2b(data, digest_size=16).digest()


def read_rows(file: Path, column: str, values: Sequence[Any], modality: str) -> tuple[Row, ...]:
    """The rows that a column of the data ``file`` tells: paths beside it of images or WAV files, or series.

    A series is a list of numbers, or of one list for each channel; in a csv, numbers joined by commas or JSON. Raises
    `InvalidInput` with the row's number, from 1.
    """
    read: dict[str, Callable[[Any], Row]] = {
        "image": lambda value: (file.parent / str(value)).read_bytes(),
        "audio": lambda value: Sound(*read_wav(file.parent / str(value))),
        "series": _series,
    }
    rows = []
    for number, value in enumerate(values, start=1):
        try:
            rows.append(read[modality](value))
        except (OSError, ValueError, TypeError, InvalidRequest) as error:
            raise InvalidInput(f"{file}: column {column!r}, row {number} is no {modality}: {error}") from None
    return tuple(rows)


def _series(value: Any) -> NDArray[Any]:
    """[channels, time], NaN where there is no value."""
    if isinstance(value, str):
        value = json.loads(value if value.lstrip().startswith("[") else f"[{value}]")
    series = np.atleast_2d(np.array(value, np.float32))
    if series.ndim != 2 or not series.size:
        raise ValueError(f"it has shape {list(series.shape)}; it is numbers, or a list of them for each channel")
    return series
