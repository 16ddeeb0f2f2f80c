"""Requests that cannot be queued: what they are told, and that telling it over and over keeps nothing."""

from __future__ import annotations

import queue
import traceback
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.site import Site

from fmplex_backend.encoders.text import TextEncoder
from fmplex_backend.errors import DeadlineExceeded, FMplexError, Quarantined, Refused
from fmplex_backend.host.intake import Intake
from fmplex_backend.host.log import HostLog
from fmplex_backend.host.requests import Ask, Reply
from fmplex_backend.host.routes import Blocked, Serving


class Asked:
    """A site with a vFM ``broken`` on port 0 and a vFM ``good`` on port 1, and the intake before it."""

    def __init__(self, site: Site) -> None:
        self.site = site
        site.add("broken", 0, parameters={"weight": "0"})
        site.add("good", 1)
        site.registry.scan(settled=True)
        assert site.engine.facts is not None
        encoder = TextEncoder(site.engine.facts)
        self.intake = Intake("minilm", encoder, site.registry, site.dispatcher, HostLog(site.log.append))

    def ask(self, port: int) -> FMplexError:
        with pytest.raises(FMplexError) as caught:
            self.intake.take(Ask(frozenset({f"port{port}.vector"}), {}, lambda _: None))
        return caught.value


@pytest.fixture
def asked(tmp_path: Path, tiny_backbone: Path) -> Iterator[Asked]:
    site = Site(tmp_path, tiny_backbone)
    yield Asked(site)
    site.dispatcher.stop()


def tracebacks(error: FMplexError) -> int:
    """How many frames it keeps alive, each with all that it holds."""
    return len(traceback.extract_tb(error.__traceback__))


def test_a_refused_vfm_keeps_nothing_of_those_who_ask(asked: Asked) -> None:
    route = asked.site.registry.routes[0]
    assert isinstance(route, Blocked)
    before = tracebacks(route.error)
    errors = [asked.ask(0) for _ in range(3)]
    assert all(isinstance(error, Refused) and "parameter 'weight' is '0'" in str(error) for error in errors)
    assert tracebacks(route.error) == before


def test_a_quarantined_vfm_keeps_nothing_either_and_is_counted(asked: Asked) -> None:
    route = asked.site.registry.routes[1]
    assert isinstance(route, Serving)
    route.generation.quarantine = reason = Quarantined("vFM 'good': kills")
    assert [str(asked.ask(1)) for _ in range(3)] == [str(reason)] * 3
    assert tracebacks(reason) == 0
    failed = [
        value
        for series, vfm, value in asked.site.dispatcher.metrics().samples()
        if (series.name, series.labels, vfm) == ("fmplex_requests_total", {"outcome": "failed"}, "good")
    ]
    assert failed == [3]


def test_a_timeout_that_no_thread_can_wait_for_is_none(asked: Asked) -> None:
    """Triton hands on any number of microseconds; the deadlines of others are kept all the same."""
    replies: queue.Queue[Reply] = queue.Queue()
    text = np.array([[b"good"]], dtype=object)
    asked.site.engine.gate.clear()
    for timeout in (None, (2**64 - 1) / 1e6, 0.02):
        asked.intake.take(Ask(frozenset({"port1.vector"}), {"text": text}, replies.put, timeout))
        if timeout is None:  # it keeps the engine busy
            assert asked.site.engine.entered.acquire(timeout=60)
    assert isinstance(replies.get(timeout=60), DeadlineExceeded)
    asked.site.engine.gate.set()
    assert [type(replies.get(timeout=60)) for _ in range(2)] == [dict, dict]
