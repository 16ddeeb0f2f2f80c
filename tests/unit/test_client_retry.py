"""When the client sends again, how long it waits, and which errors it makes of what comes back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmplex_client import DeadlineExceeded, InvalidRequest, Retry, ServerError, ServerUnavailable, UnknownTask
from fmplex_client.errors import error_from
from fmplex_client.retry import Deadline, hinted_delay, micros


@pytest.mark.parametrize(
    ("message", "seconds"),
    [
        ("queue is full (512 rows); retry in 120 ms", 0.12),
        ("loading; try again in 2 s", 2.0),
        ("Retry after 1.5s", 1.5),
        ("retry in 120 minutes", None),
        ("queue is full", None),
    ],
)
def test_hint_is_read_from_the_message(message: str, seconds: float | None) -> None:
    assert hinted_delay(message) == seconds


def test_waits_grow_and_stop_at_the_cap() -> None:
    retry = Retry(base_s=0.1, cap_s=0.5)
    waits = [retry.delay(n, "", 100, lambda: 1.0) for n in (1, 2, 3, 4, 5)]
    assert waits == pytest.approx([0.1, 0.2, 0.4, 0.5, 0.5])


@given(
    failures=st.integers(1, 10_000),
    chance=st.floats(0, 1, exclude_max=True),
    remaining=st.floats(-1, 100),
    hint=st.one_of(st.none(), st.integers(0, 100_000)),
)
def test_wait_is_within_the_deadline_and_never_under_the_hint(
    failures: int, chance: float, remaining: float, hint: int | None
) -> None:
    message = "" if hint is None else f"retry in {hint} ms"
    wait = Retry().delay(failures, message, remaining, lambda: chance)
    if wait is None:
        least = 0.025 if hint is None else hint / 1000
        assert remaining <= max(1.0, 1.25 * least)
    else:
        assert 0 <= wait < remaining
        assert wait >= (0 if hint is None else hint / 1000)


def test_attempts_are_counted() -> None:
    retry = Retry(max_attempts=2)
    assert retry.delay(1, "", 100, lambda: 0.5) is not None
    assert retry.delay(2, "", 100, lambda: 0.5) is None


def test_deadline_counts_down_on_the_given_clock() -> None:
    now = [100.0]
    deadline = Deadline(2.0, lambda: now[0])
    now[0] = 101.5
    assert deadline.remaining() == pytest.approx(0.5)
    now[0] = 102.0
    with pytest.raises(DeadlineExceeded, match="within 2 s"):
        deadline.remaining()


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), 1e9])
def test_timeout_must_be_a_sensible_number(timeout: float) -> None:
    with pytest.raises(InvalidRequest, match="timeout is"):
        Deadline(timeout)


def test_timeout_for_the_server_is_never_nought() -> None:
    assert micros(0.25) == 250_000
    assert micros(1e-9) == 1  # 0 would mean: no limit


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        ("400", InvalidRequest),
        ("404", UnknownTask),
        ("503", ServerUnavailable),
        ("500", ServerError),
        ("501", ServerError),
        ("StatusCode.INVALID_ARGUMENT", InvalidRequest),
        ("StatusCode.NOT_FOUND", UnknownTask),
        ("StatusCode.UNAVAILABLE", ServerUnavailable),
        ("StatusCode.CANCELLED", DeadlineExceeded),
        ("StatusCode.DEADLINE_EXCEEDED", DeadlineExceeded),
        ("StatusCode.INTERNAL", ServerError),
        (None, ServerError),
    ],
)
def test_status_decides_the_error_and_the_message_is_kept(status: str | None, kind: type[Exception]) -> None:
    error = error_from(status, "in ensemble 'x', something")
    assert type(error) is kind
    assert error.message == str(error) == "in ensemble 'x', something"
    assert error.status == status


def test_a_deadline_that_http_reports_as_400_is_no_wrong_request() -> None:
    assert type(error_from("400", "in ensemble 'x', vFM 'x': deadline passed before it ran")) is DeadlineExceeded
    assert type(error_from("500", "the engine missed a deadline")) is ServerError


@pytest.mark.parametrize("status", ["500", "StatusCode.INTERNAL"])
def test_a_host_that_has_died_is_asked_again_once_another_server_runs(status: str) -> None:
    dead = "in ensemble 'spam', Stub process 'minilm_0' is not healthy."
    assert type(error_from(status, dead)) is ServerUnavailable
