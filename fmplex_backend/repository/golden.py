"""``golden.json``: rows, and what they must be answered; made with a version, and asked of whoever comes to serve it.

The outputs are what plain transformers, PEFT and the head compute in fp32 from the version's own files. A serving host
runs the rows like any others before the version answers a client, so that a machine, a library or a copy that computes
something else is noticed, by name. Versions made by hand, or before there was this file, have none and are served
too::

    {"format": 1,
     "inputs": [{"text": "a good film"}],      1 to 4 rows, each with the tensors that the vFM reads, by name
     "outputs": [[-1.25, 1.5]],                per row its numbers or, where it is answered by token, a list for each
     "dtype": "fp32",
     "made_with": {"torch": "2.9.0"}}          for people

``text`` and ``text_pair`` are strings, ``series`` and ``observed`` a list for each channel, ``image`` is its file in
base64, ``audio`` its samples as little-endian 16-bit integers in base64, ``sample_rate`` a number, ``pixels`` lists.

How far an answer may be off is a fraction of the largest number in the outputs, by the dtype that is served. Measured
on MiniLM with 8 trained and 23 random vFMs: plain transformers and PEFT in bf16 are off by at
most 2.1e-2 of it, in fp16 by 2.8e-3; batches of all of them in fp32 by 2.3e-6.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Base64Bytes, BaseModel, ConfigDict, Field, ValidationError, model_validator

from fmplex_backend.arrays import Array
from fmplex_backend.errors import Refused
from fmplex_backend.repository.artifact import STEPWISE, Artifact
from fmplex_backend.repository.config import explain
from fmplex_backend.repository.modalities import TENSORS
from fmplex_backend.repository.safe_files import inside, read_json

GOLDEN_FILE = "golden.json"
MAX_ROWS = 4
MAX_BYTES = 1 << 20
TOLERANCES = {"fp32": 1e-3, "fp16": 1e-2, "bf16": 8e-2}
"""Of the largest number in the outputs; see the module."""
LEAST_TOLERANCE = 1e-5
_SHOWN = 4
_PCM = 1 << 15
"""A sample of 1.0 in 16 bits."""
_REMEDY = (
    "its files are not those that it was made with, or this machine computes otherwise; publish it anew, or take out "
    f"{GOLDEN_FILE} to serve it unchecked"
)


Colour = Annotated[int, Field(ge=0, le=255)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class GoldenRow(_Strict):
    """One row as a client would ask it; see the module for how each tensor is written."""

    text: str | None = None
    text_pair: str | None = None
    image: Base64Bytes | None = None
    pixels: list[list[tuple[Colour, Colour, Colour]]] | None = None
    audio: Base64Bytes | None = None
    sample_rate: int | None = None
    series: list[list[Annotated[float, Field(allow_inf_nan=False)]]] | None = None
    observed: list[list[bool]] | None = None

    @property
    def names(self) -> frozenset[str]:
        """Of the tensors that are there."""
        return frozenset(name for name, value in self if value is not None)

    @property
    def tensors(self) -> dict[str, Array]:
        """As a request of one row has them. Raises `Refused` where they have no shape."""
        try:
            return {name: _tensor(name, getattr(self, name))[None] for name in sorted(self.names)}
        except (ValueError, OverflowError) as error:
            raise Refused(f"{GOLDEN_FILE}: an input is no tensor: {error}") from None

    @classmethod
    def of(cls, tensors: Mapping[str, Array]) -> GoldenRow:
        """From a request's tensors of one row, [1, …] each."""
        return cls.model_validate({name: _written(name, array[0]) for name, array in tensors.items()})


def _tensor(name: str, value: Any) -> Array:
    """Without the batch dimension."""
    match TENSORS[name].data_type, value:
        case _, str():
            return np.array([value.encode()], object)
        case "TYPE_STRING", bytes():
            return np.array([value], object)
        case "TYPE_FP32", bytes():
            return np.frombuffer(value, "<i2").astype(np.float32) / _PCM
        case "TYPE_INT32", _:
            return np.array([value], np.int32)
    dtype = {"TYPE_UINT8": np.uint8, "TYPE_BOOL": np.bool_}.get(TENSORS[name].data_type, np.float32)
    return np.array(value, dtype)


def _written(name: str, array: Array) -> Any:
    """For JSON; the inverse of `_tensor`, but for the rounding of sound to 16 bits."""
    match name:
        case "text" | "text_pair":
            return bytes(array[0]).decode()
        case "image":
            return base64.b64encode(bytes(array[0]))
        case "audio":
            return base64.b64encode(np.clip(np.rint(array * _PCM), -_PCM, _PCM - 1).astype("<i2").tobytes())
        case "sample_rate":
            return int(array[0])
    return array.tolist()


class Golden(_Strict):
    """The whole of ``golden.json``."""

    format: Literal[1] = 1
    inputs: Annotated[tuple[GoldenRow, ...], Field(min_length=1, max_length=MAX_ROWS)]
    outputs: tuple[Any, ...]
    """Per row a list of numbers (logits, values or the embedding), by token a list of such lists, by step
    a list for each channel, of a forecast a list for each channel of lists for each step."""
    dtype: Literal["fp32"] = "fp32"
    """What the outputs were computed in."""
    made_with: dict[str, str] = {}
    """Versions of what computed them."""

    @model_validator(mode="after")
    def _consistent(self) -> Golden:
        if len(self.outputs) != len(self.inputs):
            raise ValueError(f"there are {len(self.inputs)} 'inputs', but {len(self.outputs)} 'outputs'")
        if not all(row.names for row in self.inputs):
            raise ValueError("every input has the tensors that the vFM reads, e.g. a 'text'")
        if len({row.names for row in self.inputs}) > 1:
            raise ValueError("every input has the same tensors: either all have a 'text_pair' or none has")
        for place, row in enumerate(self.outputs):
            if not (_numbers(row) or _table(row) or _volume(row)):
                raise ValueError(f"'outputs.{place}' is neither a list of finite numbers nor a table of them")
        return self

    @property
    def arrays(self) -> list[Array]:
        """The outputs, fp32: per row [width], [tokens, width], [channels, steps], or [channels, steps, width]."""
        return [np.array(row, np.float32) for row in self.outputs]


def _numbers(value: object) -> bool:
    if not isinstance(value, (list, tuple)) or not value:
        return False
    return all(type(number) in (int, float) and abs(number) <= np.finfo(np.float32).max for number in value)


def _table(value: object) -> bool:
    rows = value if isinstance(value, (list, tuple)) else ()
    return bool(rows) and all(map(_numbers, rows)) and len({len(row) for row in rows}) == 1


def _volume(value: object) -> bool:
    tables = value if isinstance(value, (list, tuple)) else ()
    return bool(tables) and all(map(_table, tables)) and len({(len(t), len(t[0])) for t in tables}) == 1


def read_golden(version_dir: Path, root: Path, artifact: Artifact, width: int) -> Golden | None:
    """``golden.json`` of a version of ``artifact``, which has ``width`` outputs; None where the version has none.

    Raises `Refused`; reads nothing outside ``root``, the vFM's folder.
    """
    path = version_dir / GOLDEN_FILE
    if not path.exists() and not path.is_symlink():
        return None
    if (size := inside(path, root).stat().st_size) > MAX_BYTES:
        raise Refused(f"{path.relative_to(root)} has {size} bytes, the limit is {MAX_BYTES}; keep one short row")
    try:
        golden = Golden.model_validate(read_json(path, root))
    except ValidationError as error:
        raise Refused(f"{GOLDEN_FILE}: {explain(error, Golden, 'key')}") from None
    _check_fit(golden, artifact, width)
    return golden


def _check_fit(golden: Golden, artifact: Artifact, width: int) -> None:
    names, wanted = golden.inputs[0].names, set(artifact.encoder.tensors)
    if names != wanted:
        raise Refused(f"{GOLDEN_FILE}: its inputs are {sorted(names)}; the encoder reads {sorted(wanted)}")
    shape: list[Any] = ["tokens", width] if answers_by_token(artifact) else [width]
    if artifact.kind == "forecast":
        shape = ["channels", artifact.horizon, width]
    if artifact.kind in STEPWISE:
        shape = ["channels", "steps"]
    for place, row in enumerate(golden.arrays):
        if row.ndim != len(shape) or any(type(n) is int and n != row.shape[axis] for axis, n in enumerate(shape)):
            fitting = f"[{', '.join(map(str, shape))}]"
            raise Refused(f"{GOLDEN_FILE}: outputs.{place} has shape {list(row.shape)}; with this artifact {fitting}")


def golden_socket(artifact: Artifact) -> str:
    """The socket whose answers golden rows have."""
    if artifact.kind == "forecast":
        return "volume"
    return "matrix" if answers_by_token(artifact) or artifact.kind in STEPWISE else "vector"


def answers_by_token(artifact: Artifact) -> bool:
    """Whether a row is answered by a matrix, one vector a token."""
    return artifact.kind == "token_classification" or (artifact.kind == "embedding" and artifact.pooling == "none")


def compare(golden: Golden, answers: Sequence[Array], dtype: str) -> None:
    """Raise `Refused` where ``answers``, computed in ``dtype``, are not the outputs of ``golden``.

    A row each; of answers by token, channel or step, the shorter ones may be padded with zeros to the longest.
    """
    expected = golden.arrays
    scale = max(float(np.abs(row).max()) for row in expected)
    tolerance = max(LEAST_TOLERANCE, TOLERANCES[dtype] * scale)
    whole = tuple(map(max, zip(*(row.shape for row in expected), strict=True)))
    for place, (row, answer) in enumerate(zip(expected, answers, strict=True)):
        if row.ndim > 1 and answer.shape == whole:
            row = np.pad(row, [(0, most - own) for most, own in zip(whole, row.shape, strict=True)])
        if row.shape != answer.shape:
            raise Refused(
                f"its golden input {place} is answered in shape {list(answer.shape)} instead of {list(row.shape)}; "
                f"{_REMEDY}"
            )
        off = np.abs(answer - row)
        if not off.max() <= tolerance:  # NaN is off too
            line = np.unravel_index(int(off.argmax()), off.shape)[:-1]
            raise Refused(
                f"its golden input {place} answers {_show(answer[line])} instead of {_show(row[line])} (largest "
                f"difference {off.max():.2g}, tolerance {tolerance:.2g} in {dtype}); {_REMEDY}"
            )


def _show(values: Array) -> str:
    shown = ", ".join(f"{value:.4g}" for value in values[:_SHOWN])
    return f"[{shown}{', …' if len(values) > _SHOWN else ''}]"
