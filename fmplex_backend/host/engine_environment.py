"""The environment of the processes that compute."""

from __future__ import annotations

import os

LIBRARY_PATH = "FMPLEX_ENGINE_LD_LIBRARY_PATH"
"""The library path for engines, where tritonserver needs one of its own that torch must not see."""

WARM = "FMPLEX_WARM"
"""Where Python that is warm listens (`fmplex_backend.engine.warm`), where there is one."""


def engine_environment() -> dict[str, str]:
    """Of an engine's process: this one's, and what makes torch fast beside others."""
    env = dict(os.environ)
    if (path := env.pop(LIBRARY_PATH, None)) is not None:
        env["LD_LIBRARY_PATH"] = path
    # OpenMP threads that spin on a shared CPU stall the engine for up to seconds.
    env.setdefault("GOMP_SPINCOUNT", "0")
    # A batch's tensors are freed and asked for again layer by layer: given back to the system each time, their pages
    # cost an eighth of the forward pass (docs/results.md).
    env.setdefault("MALLOC_MMAP_THRESHOLD_", str(1 << 33))
    env.setdefault("MALLOC_TRIM_THRESHOLD_", str(1 << 33))
    env["TOKENIZERS_PARALLELISM"] = "false"
    # Threads that the fork server must not have: numpy's, and those by which transformers reads weights.
    env.setdefault("OPENBLAS_NUM_THREADS", "1")
    env["HF_DEACTIVATE_ASYNC_LOAD"] = "1"
    return env
