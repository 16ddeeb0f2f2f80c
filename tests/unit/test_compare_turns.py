"""Deployments that take turns: one runs, all others are stopped, and none is left behind."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from fmplex_backend.errors import EngineFailure
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
