"""Telling from tritonserver's output that it has lost a host."""

from __future__ import annotations

from fmplex_backend.host.log import INITIALIZED
from fmplex_tools.server.lost_hosts import LOST, LostHosts

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
