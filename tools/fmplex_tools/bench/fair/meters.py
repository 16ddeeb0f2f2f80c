"""What the server counts: device time and rows of each vFM, seconds that decisions cost; from its metrics endpoint."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from fmplex_backend.errors import EngineFailure
from fmplex_tools.bench.fair.arena import Arena

DEVICE_SECONDS = "fmplex_device_seconds"
ROWS = "fmplex_rows"
BATCH_SECONDS = "fmplex_batch_seconds"
BATCH_ROWS = "fmplex_batch_rows_sum"
BATCHES = "fmplex_batch_rows_count"
DECIDING = "fmplex_decision_seconds_sum"
SUBMITTING = "fmplex_submit_seconds_sum"
TAKEN_AT = "fmplex_snapshot_timestamp_seconds"
"""The host tells its values about once a second, this one last."""
LATEST = 10.0


@dataclass(frozen=True)
class Reading:
    """All samples of one moment."""

    at: float
    """In the server's clock of the day."""
    samples: Mapping[str, Mapping[frozenset[tuple[str, str]], float]]
    """Name, without ``_total`` → labels → value."""

    def value(self, name: str, **labels: str) -> float:
        """The sum of the samples of ``name`` that have these labels; 0 where there is none yet."""
        wanted = labels.items()
        return sum(value for found, value in self.samples.get(name, {}).items() if wanted <= dict(found).items())


def scrape(made: Arena) -> Reading:
    """Every sample that the physical FM tells just now."""
    with urllib.request.urlopen(f"http://{made.options.metrics}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    samples: dict[str, dict[frozenset[tuple[str, str]], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith("fmplex_"):
                name = sample.name.removesuffix("_total")
                samples.setdefault(name, {})[frozenset(sample.labels.items())] = sample.value
    at = samples.get(TAKEN_AT, {})
    return Reading(max(at.values(), default=0.0), samples)


def read(made: Arena) -> Reading:
    """Samples that were taken together, after this call. Raises `EngineFailure` where none come."""
    asked = time.time()
    end = time.monotonic() + LATEST
    while time.monotonic() < end:
        found = scrape(made)
        if found.at > asked:
            return found
        time.sleep(0.05)
    raise EngineFailure(f"the server has told no new metrics for {LATEST:g} s")
