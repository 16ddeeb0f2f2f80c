"""When an idle engine is asked, and what is held against it."""

from __future__ import annotations

from fmplex_backend.host.heartbeat import ABSENCE, BEAT_SECONDS, LISTEN_SECONDS, Heartbeat


def test_asked_once_until_it_answers() -> None:
    heart = Heartbeat(100.0)
    assert not heart.ask(100.0 + BEAT_SECONDS / 2)
    assert heart.ask(101.0)
    assert not heart.ask(105.0)
    assert heart.owed(105.0) == 4.0
    heart.heard(105.0)
    assert heart.owed(106.0) == 0.0
    assert not heart.ask(105.5)
    assert heart.ask(106.0)


def test_the_hosts_own_absence_is_not_held_against_it() -> None:
    heart = Heartbeat(0.0)
    assert heart.look(LISTEN_SECONDS)
    assert heart.ask(1.0)
    assert heart.look(1.0)
    assert not heart.look(61.0), "the host was stopped for a minute"
    assert heart.owed(61.0) == 0.0
    assert not heart.ask(61.0)
    assert heart.look(61.0 + LISTEN_SECONDS + ABSENCE)
    assert heart.ask(61.0 + BEAT_SECONDS)
