"""From what a caller has (texts, picture files, sounds, series) to the tensors that a task reads. Nothing is sent here.

============  ====================================================================================================
a task reads  a row is
============  ====================================================================================================
``text``      a str
``image``     the path of a file or its bytes, a Pillow image, or an array uint8 [height, width, 3]
``pixels``    a Pillow image, or an array uint8 [height, width, 3]
both          ``(image, text)``, for tasks that read an image and a text
``audio``     the path of a WAV file, or samples between -1 and 1 with their rate: ``(samples, 16000)``
``series``    numbers over time, or [channels, time]; NaN where there is no value, for tasks that read ``observed``
============  ====================================================================================================
"""

from __future__ import annotations

import io
import os
import wave
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fmplex_client.errors import InvalidRequest
from fmplex_client.results import Array

Tensors = dict[str, Array]
"""Input name → [rows, …]."""
_WIDTHS = {1: "u1", 2: "<i2", 4: "<i4"}
"""Bytes of a sample in a WAV file → dtype."""


def chunks(inputs: Sequence[str], rows: Sequence[Any], text_pairs: Sequence[str] | None, limit: int) -> list[Tensors]:
    """The tensors of ``rows`` for a task that reads ``inputs``, at most ``limit`` rows each, in order.

    Rows of one request have one shape: where it changes, another request begins. Raises `InvalidRequest`.
    """
    if isinstance(rows, (str, bytes)):
        raise InvalidRequest("texts is one string; give a list of them")
    step = max(1, limit)
    if set(inputs) <= {"text", "text_pair"}:
        whole = {"text": text_tensor(rows, "texts")}
        if text_pairs is not None:
            whole["text_pair"] = text_tensor(text_pairs, "text_pairs")
            if len(text_pairs) != len(rows):
                raise InvalidRequest(f"{len(rows)} texts but {len(text_pairs)} text_pairs; give one for each")
        starts = range(0, len(rows), step)
        return [{name: tensor[start : start + step] for name, tensor in whole.items()} for start in starts]
    if text_pairs is not None:
        raise InvalidRequest(f"text_pairs go with texts; this task reads {', '.join(inputs)}")
    make = _maker(inputs)
    made = [make(row, f"row {number}") for number, row in enumerate(rows)]
    return [_stacked(group) for group in _alike(made, step)]


def text_tensor(texts: Sequence[str], what: str) -> Array:
    """[rows, 1] BYTES. Raises `InvalidRequest` for what is no text, or has no UTF-8 form (lone surrogates)."""
    if isinstance(texts, (str, bytes)):
        raise InvalidRequest(f"{what} is one string; give a list of them")
    rows = np.empty((len(texts), 1), dtype=np.object_)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise InvalidRequest(f"{what}[{i}] is of type {type(text).__name__}; texts are str")
        try:
            rows[i, 0] = text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest(f"{what}[{i}] cannot be written as UTF-8: {error}") from None
    return rows


def _alike(made: Sequence[Tensors], step: int) -> Iterator[list[Tensors]]:
    """Runs of rows that have the same shapes, of at most ``step`` rows."""
    group: list[Tensors] = []
    for row in made:
        if group and (len(group) == step or _shapes(row) != _shapes(group[0])):
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def _shapes(row: Tensors) -> list[tuple[int, ...]]:
    return [tensor.shape for tensor in row.values()]


def _stacked(rows: Sequence[Tensors]) -> Tensors:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _maker(inputs: Sequence[str]) -> Callable[[Any, str], Tensors]:
    """What makes the tensors of a row, without the batch dimension."""
    if "text" in inputs:
        return _seen_and_read(_maker([name for name in inputs if name != "text"]))
    if "image" in inputs:
        return _image
    if "pixels" in inputs:
        return _pixels
    if "audio" in inputs:
        return _audio
    if "series" in inputs:
        return _observed if "observed" in inputs else _series
    raise InvalidRequest(f"a task that reads {', '.join(inputs) or 'nothing'} is none of FMplex's")


def _seen_and_read(image: Callable[[Any, str], Tensors]) -> Callable[[Any, str], Tensors]:
    def make(row: Any, where: str) -> Tensors:
        if not isinstance(row, tuple) or len(row) != 2:
            raise InvalidRequest(f"{where} is of type {type(row).__name__}; it is (image, text)")
        return {**image(row[0], where), "text": text_tensor([row[1]], f"{where}: text")[0]}

    return make


def _image(row: Any, where: str) -> Tensors:
    if isinstance(row, (str, os.PathLike)):
        data = _read(row, where)
    elif isinstance(row, bytes):
        data = row
    else:
        data = _png(row, where)
    return {"image": np.array([data], dtype=np.object_)}


def _read(path: str | os.PathLike[str], where: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidRequest(f"{where}: cannot read {os.fspath(path)!r}: {error.strerror}") from None


def _png(row: Any, where: str) -> bytes:
    image = row
    if isinstance(row, np.ndarray):
        try:
            from PIL import Image
        except ImportError:
            raise InvalidRequest(f"{where} is an array; to send it as a file, install pillow") from None
        image = Image.fromarray(_pixels(row, where)["pixels"])
    if not hasattr(image, "save"):
        raise InvalidRequest(f"{where} is of type {type(row).__name__}; it is a file's path or bytes, or an image")
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def _pixels(row: Any, where: str) -> Tensors:
    pixels = np.asarray(row.convert("RGB") if hasattr(row, "convert") else row)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise InvalidRequest(f"{where} is {pixels.dtype} {list(pixels.shape)}; pixels are uint8 [height, width, 3]")
    return {"pixels": pixels}


def _audio(row: Any, where: str) -> Tensors:
    if isinstance(row, (str, os.PathLike)):
        row = read_wav(row, where)
    if not isinstance(row, tuple) or len(row) != 2:
        raise InvalidRequest(f"{where} is of type {type(row).__name__}; it is a WAV file's path, or (samples, rate)")
    samples, rate = np.asarray(row[0]), row[1]
    if samples.ndim != 1 or samples.dtype.kind != "f":
        raise InvalidRequest(f"{where} is {samples.dtype} {list(samples.shape)}; samples are floats [time]")
    return {"audio": samples.astype(np.float32), "sample_rate": np.array([rate], np.int32)}


def read_wav(path: str | os.PathLike[str], where: str = "audio") -> tuple[Array, int]:
    """Samples, float32 [time] between -1 and 1, channels mixed, and rate of a PCM WAV file. Raises `InvalidRequest`."""
    try:
        with wave.open(os.fspath(path), "rb") as file:
            width, channels, rate = file.getsampwidth(), file.getnchannels(), file.getframerate()
            data = file.readframes(file.getnframes())
    except (OSError, EOFError, wave.Error) as error:
        raise InvalidRequest(f"{where}: cannot read {os.fspath(path)!r} as WAV: {error}") from None
    if width not in _WIDTHS:
        raise InvalidRequest(f"{where}: {os.fspath(path)!r} has {8 * width} bits a sample; read are 8, 16 and 32")
    raw = np.frombuffer(data, _WIDTHS[width]).reshape(-1, channels).astype(np.float32)
    scaled = (raw - 128) / 128 if width == 1 else raw / float(1 << (8 * width - 1))
    return scaled.mean(1), rate


def _series(row: Any, where: str) -> Tensors:
    series = np.asarray(row)
    if series.ndim == 1:
        series = series[None]
    if series.ndim != 2 or series.dtype.kind not in "fiu":
        raise InvalidRequest(f"{where} is {series.dtype} {list(series.shape)}; a series is numbers, [channels, time]")
    return {"series": series.astype(np.float32)}


def _observed(row: Any, where: str) -> Tensors:
    made = _series(row, where)
    return {**made, "observed": ~np.isnan(made["series"])}
