"""Telling from tritonserver's output that it has lost a host."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from fmplex_backend.errors import EngineFailure
from fmplex_backend.host.log import INITIALIZED
from fmplex_tools.server.lost_hosts import LOST, LostHosts
from fmplex_tools.server.process import ServerOptions
from fmplex_tools.server.supervisor import Supervisor

LOADED = "I1123 13:39:15.471963 10408 model_lifecycle.cc:839] \"successfully loaded '{}'\""
FAILED = "E1123 13:39:15.471963 10408 model_lifecycle.cc:642] \"failed to load '{}' version 1: Internal: no\""


def test_a_host_that_is_initialized_and_not_loaded_is_lost_after_a_while() -> None:
    now = [0.0]
    hosts = LostHosts(lambda: now[0])
    for fm in ("good", "bad", "lost"):
        assert hosts.hear(INITIALIZED.format(fm)), "nobody else wants this line"
    assert not hosts.hear(LOADED.format("good"))
    assert not hosts.hear(FAILED.format("bad"))
    assert not hosts.hear("I1123 13:39:15 1 model.py:104] \"fmplex: vFM 'lost': version 1 is served\"")
    assert hosts.first() is None
    now[0] = LOST + 1
    assert hosts.first() == "lost"
    hosts.hear(LOADED.format("lost"))
    assert hosts.first() is None


class Scripted:
    """A server whose first starts come to nothing."""

    def __init__(self, repository: Path, lost: str | None, crashed: bool, good: bool) -> None:
        self.options = ServerOptions(repository)
        self.lost, self.crashed, self._good = lost, crashed, good
        self.killed = False

    def start(self) -> None: ...

    def note_segments(self) -> None: ...

    def kill(self) -> None:
        self.killed = True

    def wait_ready(self, timeout: float, stop: threading.Event) -> None:
        if not self._good:
            raise EngineFailure("tritonserver ended with code -6:\nits last words")


@pytest.mark.parametrize(("lost", "crashed"), [("a host is lost", False), (None, True)])
def test_another_server_is_started_in_its_place(tmp_path: Path, lost: str | None, crashed: bool) -> None:
    made = [Scripted(tmp_path, lost, crashed, good=False), Scripted(tmp_path, None, False, good=True)]
    left, said = iter(made), list[str]()
    supervisor = Supervisor(lambda: next(left), said.append, 1.0)  # type: ignore[arg-type,return-value]
    supervisor.start(threading.Event())
    assert [one.killed for one in made] == [True, False]
    assert said == ["tritonserver ended with code -6; starting another one"]
    assert supervisor.wrong is None


def test_what_would_come_again_is_told_at_once(tmp_path: Path) -> None:
    supervisor = Supervisor(lambda: Scripted(tmp_path, None, False, good=False), print, 1.0)  # type: ignore[arg-type,return-value]
    with pytest.raises(EngineFailure, match="ended with code -6"):
        supervisor.start(threading.Event())
