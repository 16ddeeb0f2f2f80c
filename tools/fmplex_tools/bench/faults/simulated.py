"""Servers whose engines can be made to fail."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from fmplex_backend.messages import SIMULATED_FAULTS


@contextmanager
def simulated_faults(poison: int) -> Iterator[None]:
    """Engines of servers that are started meanwhile can be made to fail; ``poison``: see the engine's faults."""
    os.environ[SIMULATED_FAULTS] = str(poison)
    try:
        yield
    finally:
        del os.environ[SIMULATED_FAULTS]
