"""Tables that a package carries as pickled pandas frames, read without pandas and without trust.

Unpickling may call whatever a file names, so only a handful of names is known here: numpy's arrays, as numpy pickles
them, and stand-ins for what a frame is made of, which keep what they are given and do nothing. Any other name is
refused before anything is called.
"""

from __future__ import annotations

import io
import lzma
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fmplex_backend.arrays import Array
from fmplex_backend.errors import Refused

MOST_BYTES = 1 << 28
"""Of a table, unpacked."""


class _Frame:
    """In the place of pandas' DataFrame."""

    state: dict[str, Any]

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.state = state


class _Blocks:
    """In the place of its BlockManager: blocks of columns, and the names of columns and rows."""

    def __init__(self, blocks: Sequence[_Block], axes: Sequence[_Index]) -> None:
        self.blocks, self.axes = blocks, axes


class _Block:
    """Columns of one type: ``values`` [columns, rows], and which columns they are."""

    def __init__(self, values: Array, placement: Any, _ndim: int) -> None:
        self.values, self.placement = values, placement

    def places(self, columns: int) -> list[int]:
        """Their numbers among all columns."""
        if isinstance(self.placement, slice):
            return list(range(*self.placement.indices(columns)))
        return [int(place) for place in self.placement]


class _Index:
    """In the place of pandas' kinds of index."""

    data: Sequence[Any] = ()


def _new_index(kind: type[_Index], state: dict[str, Any]) -> _Index:
    made = kind()
    made.data = state.get("data", ())
    return made


_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("pandas.core.frame", "DataFrame"): _Frame,
    ("pandas.core.internals.managers", "BlockManager"): _Blocks,
    ("pandas._libs.internals", "_unpickle_block"): _Block,
    ("pandas.core.indexes.base", "_new_Index"): _new_index,
    ("pandas.core.indexes.base", "Index"): _Index,
    ("pandas.core.indexes.range", "RangeIndex"): _Index,
    ("builtins", "slice"): slice,
    ("numpy", "dtype"): np.dtype,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy.core.multiarray", "_reconstruct"): np.core.multiarray._reconstruct,  # type: ignore[attr-defined]
    ("numpy.core.numeric", "_frombuffer"): np.core.numeric._frombuffer,  # type: ignore[attr-defined]
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _KNOWN[module, name]
        except KeyError:
            raise Refused(f"it names {module}.{name}, which no table needs") from None


def read_frame(path: Path) -> dict[str, list[Any]]:
    """Columns by name, of a frame that was pickled and compressed by xz. Raises `Refused`."""
    try:
        data = lzma.LZMADecompressor().decompress(path.read_bytes(), MOST_BYTES)
        if len(data) == MOST_BYTES:
            raise Refused(f"it unpacks to more than {MOST_BYTES} bytes")
        frame = _Unpickler(io.BytesIO(data)).load()
        return _columns(frame)
    except Refused as error:
        raise Refused(f"{path.name}: {error}") from None
    except (OSError, lzma.LZMAError, EOFError, pickle.UnpicklingError, TypeError, ValueError, AttributeError) as error:
        raise Refused(f"{path.name}: no pickled table: {error}") from None


def _columns(frame: Any) -> dict[str, list[Any]]:
    if not isinstance(frame, _Frame):
        raise Refused(f"holds a {type(frame).__name__}")
    blocks = frame.state["_mgr"]
    names = [str(name) for name in blocks.axes[0].data]
    found: dict[int, list[Any]] = {}
    for block in blocks.blocks:
        for place, values in zip(block.places(len(names)), np.atleast_2d(block.values), strict=True):
            found[place] = values.tolist()
    return {name: found[place] for place, name in enumerate(names)}
