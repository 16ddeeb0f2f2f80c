"""Reading tensors that somebody else has saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import load_file

from fmplex_backend.errors import Refused


def read_safetensors(path: Path) -> dict[str, Any]:
    """By name, as numpy arrays. Raises `Refused` where it is no such file."""
    try:
        found: dict[str, Any] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise Refused(f"{path}: not readable as safetensors ({error})") from None
    return found
