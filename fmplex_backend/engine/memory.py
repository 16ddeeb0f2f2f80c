"""When a device has no memory left."""

from __future__ import annotations

import torch

_ON_CPU = ("can't allocate memory", "not enough memory")
"""In the messages of torch's CPU allocator, which raises nothing but RuntimeError."""


def is_out_of_memory(error: Exception) -> bool:
    """Whether ``error`` says that memory was asked for which is not there; what was computed before is as it was."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _ON_CPU)
