"""What the host refuses it tells by returning: no thread, no queue and no round trip of a reply that comes later."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.site import Site

from fmplex_backend.encoders.text import TextEncoder
from fmplex_backend.errors import EngineFailure, FMplexError, NotFound, Unavailable
from fmplex_backend.host.host import FMHost
from fmplex_backend.host.intake import Intake
from fmplex_backend.host.log import HostLog
from fmplex_backend.host.requests import Ask, Reply
from fmplex_backend.repository.config import FMSettings


class Asked:
    """A host that was not started, whose intake is a site's with a vFM ``small`` on port 0 that may queue 2 rows."""

    def __init__(self, site: Site) -> None:
        site.add("small", 0, parameters={"max_queue_size": "2"})
        site.registry.scan(settled=True)
        assert site.engine.facts is not None
        self.log: list[str] = []
        log = HostLog(self.log.append)
        self.host = FMHost(site.repository, "minilm", log, settings=FMSettings(backbone="tiny", ports=16))
        self.host._intake = Intake("minilm", TextEncoder(site.engine.facts), site.registry, site.dispatcher, log)
        self.engine = site.engine
        self.replies: list[Reply] = []

    def ask(self, port: int, rows: int = 1) -> FMplexError | None:
        texts = np.array([[b"good"]] * rows, dtype=object)
        return self.host.ask(Ask(frozenset({f"port{port}.vector"}), {"text": texts}, self.replies.append))


@pytest.fixture
def asked(tmp_path: Path, tiny_backbone: Path) -> Iterator[Asked]:
    site = Site(tmp_path, tiny_backbone)
    made = Asked(site)
    yield made
    site.dispatcher.stop()
    made.host.stop()


def test_what_is_refused_is_returned_and_nothing_comes_later(asked: Asked) -> None:
    assert isinstance(asked.ask(5), NotFound)
    error = asked.ask(0, rows=3)
    assert error is not None
    assert "ask for at most 2 at a time (max_queue_size)" in str(error)
    assert asked.host._replies.empty()
    assert asked.replies == []


def test_a_full_queue_tells_each_when_to_come_again(asked: Asked) -> None:
    asked.engine.gate.clear()
    assert asked.ask(0, rows=2) is None
    assert asked.engine.entered.acquire(timeout=60)  # they run, and two more may wait
    assert asked.ask(0, rows=2) is None
    refused = [asked.ask(0, rows=2) for _ in range(3)]
    assert all(isinstance(error, Unavailable) and "2 of 2 wait" in str(error) for error in refused)
    assert all("; retry in " in str(error) for error in refused)
    asked.engine.gate.set()


def test_a_defect_is_an_answer_too(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    def take(_: Ask) -> None:
        raise ZeroDivisionError("of ours")

    monkeypatch.setattr(asked.host._intake, "take", take)
    error = asked.ask(0)
    assert isinstance(error, EngineFailure)
    assert str(error) == "internal error: ZeroDivisionError: of ours"
    asked.ask(0)
    told = [line for line in asked.log if line.startswith("defect")]
    assert told == ["defect: request '': ZeroDivisionError: of ours"], "once, however many requests run into it"
