"""The numpy array type that the whole project annotates with, and the widths at which arrays are stacked."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]
"""An array of any dtype; docstrings give shape and dtype."""


def width_class(width: int) -> int:
    """The width at which tensors of ``width`` are stacked with others: the next power of two, at least 4."""
    return max(4, 1 << (width - 1).bit_length())
