"""Finding the rows that kill engines: all of them, none but them, with few deaths."""

from __future__ import annotations

import math
import random
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fmplex_backend.host.suspects import GUILTY, SUSPECT, Suspects, Trial
from fmplex_backend.scheduling.interface import Batch, Row


def row(vfm: str = "a", generation: int = 1) -> Row:
    payload: Any = SimpleNamespace(deaths=0, deaths_alone=0, generation=generation)
    return Row(vfm, 8, payload)


def everyone(_: Row) -> bool:
    return True


def test_the_first_death_is_nobodys_fault() -> None:
    suspects, rows = Suspects(), [row(), row("b")]
    assert suspects.sort_out(Batch(1, tuple(rows))) == (rows, [])
    assert not suspects
    assert suspects.next(everyone) is None


def test_who_sees_a_second_engine_die_is_tried_apart_from_the_others() -> None:
    suspects, old, new = Suspects(), [row("b"), row("a")], [row()]
    suspects.sort_out(Batch(1, tuple(old), predicted=0.5))
    assert suspects.sort_out(Batch(2, (*old, *new), predicted=0.25)) == (new, [])
    trial = suspects.next(everyone)
    assert isinstance(trial, Trial)
    assert trial.rows == (old[1], old[0]), "rows of one vFM lie together"
    assert {vfm: share.rows for vfm, share in trial.shares.items()} == {"a": 1, "b": 1}
    assert (trial.predicted, trial.physical_rows) == (0.25, 2)
    assert not suspects


def test_a_row_alone_is_convicted_by_the_second_death_of_a_trial() -> None:
    suspects, alone = Suspects(), row()
    assert suspects.sort_out(Batch(1, (alone,))) == ([alone], [])
    assert suspects.sort_out(Batch(2, (alone,))) == ([], [])
    for convicted in ([], [alone]):
        trial = suspects.next(everyone)
        assert trial is not None
        assert trial.rows == (alone,)
        assert suspects.sort_out(trial) == ([], convicted)
    assert not suspects


def test_what_is_not_wanted_any_more_is_left_out() -> None:
    suspects, rows = Suspects(), [row(), row(), row("b", 2)]
    for number in range(SUSPECT):
        suspects.sort_out(Batch(number, tuple(rows)))
    assert suspects.withdraw(lambda task: task.generation == 2) == [rows[2]]  # type: ignore[attr-defined]
    trial = suspects.next(lambda one: one is rows[1])
    assert trial is not None
    assert trial.rows == (rows[1],)
    assert suspects.next(everyone) is None


@given(st.integers(1, 64), st.sets(st.integers(0, 63), max_size=4), st.integers(0, 2**32))
def test_the_guilty_are_found_and_nobody_else(size: int, guilty: set[int], seed: int) -> None:
    """An engine dies whenever a guilty row is in its batch, at first, and under one trial, for other reasons."""
    chance = random.Random(seed)
    rows = [row(chance.choice("abc")) for _ in range(size)]
    poison = {id(rows[place]) for place in guilty if place < size}
    suspects, waiting, served, convicted, deaths = Suspects(), list(rows), [], [], 0
    unlucky = chance.randrange(40)
    for turn in range(10_000):
        trial = suspects.next(everyone) if turn % 2 else None
        batch = trial or Batch(turn, tuple(waiting))
        if trial is None:
            waiting = []
        if not batch.rows:
            if not suspects:
                break
            continue
        if turn in (0, unlucky) or any(id(one) in poison for one in batch.rows):
            deaths += 1
            again, found = suspects.sort_out(batch)
            waiting += again
            convicted += found
            if isinstance(batch, Trial):
                assert not again
        else:
            served += batch.rows
    assert {id(one) for one in convicted} == poison
    assert {id(one) for one in served} == {id(one) for one in rows} - poison
    assert all(one.payload.deaths_alone == GUILTY for one in convicted)
    assert deaths <= SUSPECT + (len(poison) + 1) * (math.ceil(math.log2(size)) + 3) + 1
