"""Reading what a stranger wrote: JSON and safetensors, inside one folder, of bounded size; nothing else, ever."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from fmplex_backend.arrays import Array
from fmplex_backend.errors import Refused

MAX_JSON_BYTES = 4 << 20
MAX_TENSOR_BYTES = 4 << 30

_DTYPES: dict[str, Any] = {"F64": np.float64, "F32": np.float32, "F16": np.float16}


def inside(path: Path, root: Path) -> Path:
    """``path`` with links resolved. Raises `Refused` where it is missing or leaves ``root``, the vFM's folder."""
    real = path.resolve()
    if not real.is_relative_to(root.resolve()):
        raise Refused(f"{path.relative_to(root)} leads out of the vFM's folder; only files inside it are read")
    if not real.is_file():
        raise Refused(f"{path.relative_to(root)} is missing")
    return real


def read_bytes(path: Path, root: Path, limit: int) -> bytes:
    """What is in ``path``. Raises `Refused` where that is more than ``limit`` bytes, or cannot be read."""
    real = inside(path, root)
    name = path.relative_to(root)
    try:
        if real.stat().st_size > limit:
            raise Refused(f"{name} is larger than {limit} bytes")
        return real.read_bytes()
    except OSError as error:
        raise Refused(f"{name} cannot be read: {error.strerror}") from None


def read_json(path: Path, root: Path) -> Any:
    """The JSON value in ``path``. Raises `Refused` where it is too large or not JSON."""
    content = read_bytes(path, root, MAX_JSON_BYTES)
    try:
        value = json.loads(content)
        json.dumps(value, ensure_ascii=False).encode()  # an escaped lone surrogate has no UTF-8 to be served in
    except (ValueError, RecursionError) as error:
        raise Refused(f"{path.relative_to(root)} is not valid JSON: {error}") from None
    return value


def read_tensors(path: Path, root: Path) -> dict[str, Array]:
    """Every tensor in a safetensors file, as fp32, all values finite. Raises `Refused`."""
    content = read_bytes(path, root, MAX_TENSOR_BYTES)
    name = path.relative_to(root)
    try:
        entries = safetensors.deserialize(content)  # type: ignore[no-untyped-call]
    except Exception as error:  # the library has no public base class for its errors
        raise Refused(f"{name} is not a whole safetensors file: {error}") from None
    # Sorted, because the library's order varies: a broken file is always refused in the same words.
    return {key: _as_fp32(key, entry, name) for key, entry in sorted(entries, key=lambda item: item[0])}


def _as_fp32(key: str, entry: dict[str, Any], name: Path) -> Array:
    dtype, data = entry["dtype"], entry["data"]
    if dtype == "BF16":
        # numpy has no bfloat16; its bits are the upper half of a float32.
        array = (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
    elif dtype in _DTYPES:
        array = np.frombuffer(data, _DTYPES[dtype]).astype(np.float32)
    else:
        raise Refused(f"{name}: tensor {key!r} has dtype {dtype}; weights are F32, F16 or BF16")
    if not np.isfinite(array).all():
        raise Refused(f"{name}: tensor {key!r} has NaN or infinite values")
    try:
        return array.reshape(entry["shape"])
    except ValueError as error:  # more dimensions than numpy has, or too large ones beside one of 0
        raise Refused(f"{name}: tensor {key!r} has a shape that no weights have: {error}") from None
