"""The numpy array type that the whole project annotates with."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]
"""An array of any dtype; docstrings give shape and dtype."""
