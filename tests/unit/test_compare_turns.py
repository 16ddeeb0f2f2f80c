"""Deployments that take turns: one runs, all others are stopped, and none is left behind."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.progress import Progress

from fmplex_backend.errors import EngineFailure
from fmplex_tools.bench.compare.comparison import Comparison
from fmplex_tools.bench.compare.plan import REFERENCE, Plan
from fmplex_tools.bench.compare.turns import Turns


class Process:
    """What `Turns` asks of a `Started`."""

    def __init__(self) -> None:
        self.state = "runs"
        self.answers = True

    def pause(self) -> None:
        self.state = "stopped"

    def resume(self) -> None:
        self.state = "runs"

    def wait_answer(self, index: int) -> None:
        if not self.answers:
            raise EngineFailure("silent")


def test_turns() -> None:
    made: list[Process] = []

    @contextlib.contextmanager
    def start(name: str) -> Iterator[Any]:
        if name == "broken":
            raise EngineFailure("does not start")
        made.append(Process())
        yield made[-1]
        gone.append(name)

    gone: list[str] = []
    with Turns(start) as turns:
        turns.start("a")
        turns.start("b")
        with pytest.raises(EngineFailure):
            turns.start("broken")
        assert "a" in turns
        assert "broken" not in turns
        assert [process.state for process in made] == ["stopped", "stopped"]
        with turns.turn("a"):
            assert [process.state for process in made] == ["runs", "stopped"]
        assert made[0].state == "stopped"
        turns.again("a")
        assert gone == ["a"]
        assert made[2].state == "stopped"
        made[1].answers = False
        with pytest.raises(EngineFailure, match="silent"), turns.turn("b"):
            pass
        assert made[1].state == "stopped"
    assert sorted(gone) == ["a", "a", "b"]


def test_a_deployment_that_died_is_started_anew_for_its_next_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Process] = []

    @contextlib.contextmanager
    def start(name: str) -> Iterator[Any]:
        made.append(Process())
        yield made[-1]

    compared = Comparison(Plan(source=Path(), deployments=(REFERENCE,)), Progress(disable=True))
    cell: Any = SimpleNamespace(stolen=0.0)
    monkeypatch.setattr(compared, "_attempt", lambda *_: (cell, False))
    with Turns(start) as turns:
        turns.start(REFERENCE)
        made[0].answers = False
        case: Any = None
        with pytest.raises(EngineFailure, match="silent"):
            compared._turn(turns, REFERENCE, 2, 0, case)
        assert [process.state for process in made] == ["stopped", "stopped"]
        compared._turn(turns, REFERENCE, 2, 1, case)
    assert compared.record.cells == [cell]


def test_a_deployment_that_cannot_be_started_anew_is_left_out() -> None:
    """An overloaded one is started anew after its turn, which may fail too; that failure is told and ends nothing."""
    starts = iter([Process()])

    @contextlib.contextmanager
    def start(name: str) -> Iterator[Any]:
        if (process := next(starts, None)) is None:
            raise EngineFailure("does not start")
        yield process

    cell: Any = SimpleNamespace(stolen=0.0)
    case: Any = None
    compared = Comparison(Plan(source=Path(), deployments=(REFERENCE,)), Progress(disable=True))
    compared._attempt = lambda *_: (cell, True)  # type: ignore[method-assign]
    with Turns(start) as turns:
        turns.start(REFERENCE)
        with pytest.raises(EngineFailure, match="does not start"):
            compared._turn(turns, REFERENCE, 2, 0, case)
        assert REFERENCE not in turns
    assert compared.record.cells == [cell]
