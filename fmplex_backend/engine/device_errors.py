"""What torch raises where a device has no memory left, and where it cannot be used any more."""

from __future__ import annotations

import torch

_ON_CPU = ("can't allocate memory", "not enough memory")
"""In the messages of torch's CPU allocator, which raises nothing but RuntimeError."""
_FAULT = "CUDA error"


def is_out_of_memory(error: Exception) -> bool:
    """Whether ``error`` says that memory was asked for which is not there; what was computed before is as it was."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _ON_CPU)


def is_device_fault(error: Exception) -> bool:
    """Whether ``error`` says that the device has failed, after which nothing in this process can use it.

    It must not pass for somebody's bad file or head: the engine has to end, and another one takes its work.
    """
    accelerator = isinstance(error, torch.AcceleratorError) and not isinstance(error, torch.OutOfMemoryError)
    return accelerator or (isinstance(error, RuntimeError) and str(error).startswith(_FAULT))
