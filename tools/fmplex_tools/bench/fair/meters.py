"""What the server counts: device time and rows of each vFM, seconds that decisions cost; from its metrics endpoint."""

from __future__ import annotations

import contextlib
import time

from fmplex_backend.errors import EngineFailure, InvalidInput
from fmplex_tools.bench.fair.arena import Arena
from fmplex_tools.top.scrape import FmScrape, scrape

DEVICE_SECONDS = "fmplex_device_seconds_total"
ROWS = "fmplex_rows_total"
BATCH_SECONDS = "fmplex_batch_seconds_total"
BATCH_ROWS = "fmplex_batch_rows_sum"
BATCHES = "fmplex_batch_rows_count"
DECIDING = "fmplex_decision_seconds_sum"
SUBMITTING = "fmplex_submit_seconds_sum"
LATEST = 60.0
"""Seconds to wait for metrics: a host tells them more slowly the busier its machine is."""


def read(made: Arena) -> FmScrape:
    """Samples that were taken together, after this call. Raises `EngineFailure` where none come."""
    asked = time.time()
    end = time.monotonic() + LATEST
    while time.monotonic() < end:
        with contextlib.suppress(InvalidInput):  # a host that was just started has told none at all
            found = scrape(f"http://{made.options.metrics}/metrics").get(made.fm)
            if found is not None and found.at > asked:  # about once a second, the time last
                return found
        time.sleep(0.05)
    raise EngineFailure(f"the server has told no new metrics for {LATEST:g} s")
