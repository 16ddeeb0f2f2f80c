"""Tensors out of a CTranslate2 ``model.bin`` (format versions 2 to 6, as its own converter writes them)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fmplex_backend.arrays import Array
from fmplex_backend.errors import Refused

_DTYPES: dict[int, type[np.generic]] = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
_BY_SIZE: dict[int, type[np.generic]] = {4: np.float32, 2: np.int16, 1: np.int8}
"""Before version 4, which tells the type, only its size is told."""


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def number(self, form: str) -> int:
        value: int = struct.unpack_from(f"<{form}", self._data, self._at)[0]
        self._at += struct.calcsize(f"<{form}")
        return value

    def text(self) -> str:
        length = self.number("H")
        self._at += length
        return self._data[self._at - length : self._at].rstrip(b"\0").decode()

    def array(self, dtype: type[np.generic], size: int, shape: list[int]) -> Array:
        found = np.frombuffer(self._data, dtype, size // np.dtype(dtype).itemsize, self._at).reshape(shape)
        self._at += size
        return found


def read_ctranslate2(parts: Sequence[Path]) -> dict[str, Array]:
    """fp32 arrays by name, of a file in ``parts``; those of other types are left out. Raises `Refused`."""
    try:
        return _read(_Reader(b"".join(part.read_bytes() for part in parts)))
    except (OSError, struct.error, ValueError, KeyError) as error:
        raise Refused(f"{parts[0].name}: no model of CTranslate2: {error}") from None


def _read(reader: _Reader) -> dict[str, Array]:
    version = reader.number("I")
    if version >= 2:  # what it is and its revision: whoever reads it knows
        reader.text()
        reader.number("I")
    found: dict[str, Array] = {}
    for _ in range(reader.number("I")):
        name = reader.text()
        shape = [reader.number("I") for _ in range(reader.number("B"))]
        if version >= 4:
            dtype = _DTYPES[reader.number("B")]
            size = reader.number("I")
        else:
            width = reader.number("B")
            dtype, size = _BY_SIZE[width], reader.number("I") * width
        array = reader.array(dtype, size, shape)
        if np.issubdtype(dtype, np.floating):
            found[name] = array.astype(np.float32)
    return found
