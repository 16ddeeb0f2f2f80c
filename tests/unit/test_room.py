"""The cap on a batch's rows after the device ran out of memory."""

from __future__ import annotations

from fmplex_backend.host.room import SECONDS, Room


def test_it_shrinks_at_once_and_grows_again_slowly() -> None:
    room = Room(64)
    assert room.rows(0) == 64
    assert room.shrink(20, 0)
    assert room.rows(SECONDS - 1) == 20
    assert room.rows(SECONDS) == 40
    assert room.rows(SECONDS + 1) == 40
    assert room.rows(2 * SECONDS) == 64
    assert room.rows(9 * SECONDS) == 64


def test_what_fits_less_than_before_counts_and_there_is_always_a_row() -> None:
    room = Room(64)
    assert room.shrink(20, 0)
    assert not room.shrink(30, 1)
    assert room.rows(SECONDS) == 20, "trouble again, later growth"
    assert room.shrink(0, 2 * SECONDS)
    assert room.rows(2 * SECONDS) == 1
