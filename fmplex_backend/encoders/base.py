"""What an encoder is: the input side of every vFM of one backbone, by each vFM's own rules. No torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from fmplex_backend.arrays import Array
from fmplex_backend.errors import InvalidInput
from fmplex_backend.messages import Tokens
from fmplex_backend.repository.modalities import TENSORS, EncoderSpec


@dataclass(frozen=True)
class EncodedRow:
    """One row, ready for the backbone."""

    tokens: Tokens
    """By the names and in the shapes that the backbone's `collate` takes."""
    size: int
    """Positions of the backbone that it takes, padding apart."""
    offsets: list[tuple[int, int]] | None = None
    """Per token, the characters of the text that it stands for, (0, 0) for special tokens; where that was asked for."""
    steps: int | None = None
    """Of a series, those that the backbone sees of it."""


class Encoder(ABC):
    """Encodes for every vFM of one backbone; may be called from any thread."""

    @abstractmethod
    def encode(self, spec: EncoderSpec, inputs: Mapping[str, Array], *, offsets: bool = False) -> list[EncodedRow]:
        """Encode one request's rows, ``inputs`` as `check_tensors` wants them.

        ``offsets``: whether they are wanted of a text; they take ten times the memory of the tokens. Raises
        `InvalidInput` naming the row, the value and the limit.
        """


def check_tensors(spec: EncoderSpec, inputs: Mapping[str, Array]) -> int:
    """The rows of a request, whose tensors are those that ``spec`` reads, in their shapes. Raises `InvalidInput`."""
    first, *others = spec.tensors
    if first not in inputs:
        raise InvalidInput(f"input {first!r} is missing")
    if surplus := inputs.keys() - set(spec.tensors):
        raise InvalidInput(f"takes no {min(surplus)!r}")
    for name in others:
        if name not in inputs:
            why = "takes a pair of texts, so" if name == "text_pair" else f"with {first!r},"
            raise InvalidInput(f"{why} {name!r} must be given")
    for name, array in inputs.items():
        if not TENSORS[name].fits(array.shape):
            raise InvalidInput(f"input {name!r} has shape {list(array.shape)}; it is {TENSORS[name]}")
    rows = {name: len(array) for name, array in inputs.items()}
    if not rows[first]:
        raise InvalidInput(f"input {first!r} has no rows")
    if len(set(rows.values())) != 1:
        raise InvalidInput(f"inputs differ in rows: {rows}")
    return rows[first]
