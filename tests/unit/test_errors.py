"""Whatever an error quotes, it can be sent."""

from __future__ import annotations

from fmplex_backend.errors import MAX_MESSAGE, Refused


def test_a_long_message_keeps_its_ends() -> None:
    message = str(Refused(f"vFM 'a': {'x' * 10_000_000}; use another"))
    assert len(message) <= MAX_MESSAGE
    assert message.startswith("vFM 'a': xxx")
    assert message.endswith("xxx; use another")


def test_a_lone_surrogate_becomes_its_escape() -> None:
    assert str(Refused("unknown key '\ud800'")) == r"unknown key '\ud800'"


def test_said_again_it_is_the_same() -> None:
    error = Refused("x" * MAX_MESSAGE * 2)
    assert str(error.again()) == str(error)
