"""Thousands of random traces, every rule and both theorems checked at every step (see `support.traces`).

FMPLEX_TRACES=20000 pytest tests/unit/test_fair_traces.py     # more of them
"""

from __future__ import annotations

import os

import pytest
from support.traces import random_trace

TRACES = int(os.environ.get("FMPLEX_TRACES", "2000"))
CHUNKS = 20


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_every_rule_holds_on_random_traces(chunk: int) -> None:
    pairs = 0
    for seed in range(chunk, TRACES, CHUNKS):
        try:
            pairs += random_trace(seed).pairs_checked
        except Exception as error:
            error.add_note(f"random_trace({seed})") if hasattr(error, "add_note") else None
            raise
    assert pairs > 100 * TRACES / CHUNKS, "the traces hardly ever had two backlogged vFMs"
