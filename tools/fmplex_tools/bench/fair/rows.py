"""Rows that are no texts, to load a server with: made up, different from one another, and as a request has them."""

from __future__ import annotations

import io
import random
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2

PIXELS, STEPS, RATE = 64, 512, 16_000
"""Height and width of an image before it is scaled; steps of a series; samples a second."""
AUDIO_SECONDS = 2.0


@dataclass(frozen=True)
class Raw:
    """A tensor as gRPC carries it."""

    datatype: str
    shape: tuple[int, ...]
    content: bytes


def requests_of(vfm: str, modality: str, rows: int, count: int, seed: int) -> list[Any]:
    """So many requests of ``rows`` rows to ``vfm``, which ask for ``info`` only."""
    chance = random.Random(seed)
    made = []
    for _ in range(count):
        tensors = _MAKERS[modality](rows, chance)
        request = service_pb2.ModelInferRequest(
            model_name=vfm, raw_input_contents=[tensor.content for tensor in tensors.values()]
        )
        for name, tensor in tensors.items():
            request.inputs.add(name=name, datatype=tensor.datatype, shape=tensor.shape)
        request.outputs.add(name="info")
        made.append(request)
    return made


def _images(rows: int, chance: random.Random) -> Mapping[str, Raw]:
    from PIL import Image

    files = []
    for _ in range(rows):
        pixels = np.random.default_rng(chance.getrandbits(32)).integers(0, 256, (4, 4, 3), np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).resize((PIXELS, PIXELS)).save(file, "PNG")
        files.append(file.getvalue())
    return {"image": _strings(files)}


def _sounds(rows: int, chance: random.Random) -> Mapping[str, Raw]:
    numbers = np.random.default_rng(chance.getrandbits(32))
    samples = 0.1 * numbers.standard_normal((rows, round(AUDIO_SECONDS * RATE)))
    return {"audio": _numbers(samples, "FP32"), "sample_rate": _numbers(np.full((rows, 1), RATE), "INT32")}


def _series(rows: int, chance: random.Random) -> Mapping[str, Raw]:
    numbers = np.random.default_rng(chance.getrandbits(32))
    return {"series": _numbers(numbers.standard_normal((rows, 1, STEPS)).cumsum(-1), "FP32")}


_MAKERS: dict[str, Callable[[int, random.Random], Mapping[str, Raw]]] = {
    "image": _images,
    "audio": _sounds,
    "series": _series,
}


def _strings(values: Sequence[bytes]) -> Raw:
    return Raw("BYTES", (len(values), 1), b"".join(struct.pack("<I", len(value)) + value for value in values))


def _numbers(values: Any, datatype: str) -> Raw:
    dtype = np.int32 if datatype == "INT32" else np.float32
    return Raw(datatype, values.shape, np.ascontiguousarray(values, dtype).tobytes())
