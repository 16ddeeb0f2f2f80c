"""Popularity by Zipf's law, and load on a fleet that follows it: `ZipfLoad`, with `zipf_generator` as its process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fmplex_backend.errors import EngineFailure, InvalidInput
from fmplex_tools.bench.fair.load import Load
from fmplex_tools.bench.fair.streams import Stream


def popularity(count: int, exponent: float) -> NDArray[np.float64]:
    """The part of all requests that goes to each of ``count`` vFMs, the most popular first; their sum is 1.

    The k-th gets 1/k^exponent of what the first one gets. Raises `InvalidInput` for no vFM or a negative exponent.
    """
    if count < 1 or exponent < 0:
        raise InvalidInput(
            f"popularity of {count} vFMs by Zipf({exponent:g}): at least 1 vFM, an exponent of at least 0"
        )
    parts = np.arange(1, count + 1, dtype=np.float64) ** -exponent
    shares: NDArray[np.float64] = parts / parts.sum()
    return shares


def slot_hits(count: int, exponent: float, slots: int) -> float:
    """The part of requests that goes to the ``slots`` most popular vFMs: the best hit rate that slots can have."""
    return float(popularity(count, exponent)[:slots].sum())


class ZipfLoad(Load):
    """Requests to the vFMs ``names``, the first the most popular; a context manager like `Load`.

    Open loop with ``rate`` requests a second (Poisson), or closed loop with ``clients`` that always wait for one.
    """

    def __init__(
        self,
        url: str,
        names: Sequence[str],
        exponent: float,
        *,
        rate: float = 0.0,
        clients: int = 0,
        tokens: tuple[int, ...] = (16,),
        rows: int = 1,
        seed: int = 0,
    ) -> None:
        """``tokens`` are lengths of rows, drawn at random; ``rows`` are in each request, all for one vFM."""
        super().__init__(url, [Stream(name, tokens, rows) for name in names], seed=seed)
        self._order = {
            "url": url,
            "names": list(names),
            "shares": popularity(len(names), exponent).tolist(),
            "rate": rate,
            "clients": clients,
            "tokens": tokens,
            "rows": rows,
            "seed": seed,
        }

    def __enter__(self) -> ZipfLoad:
        command = [sys.executable, "-m", "fmplex_tools.bench.engine.zipf_generator"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        self._processes.append(process)
        try:
            self._tell(process, json.dumps(self._order))
            assert process.stdout is not None
            if process.stdout.readline() != b"ready\n":
                raise EngineFailure(f"a load process cannot reach {self._url}")
        except BaseException:
            self.__exit__()  # Ctrl-C while it makes its requests
            raise
        return self
