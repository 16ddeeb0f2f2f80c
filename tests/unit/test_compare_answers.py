"""Figures of what was sent: latencies from the due time, what failed, who got his share."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmplex_backend.errors import InvalidInput
from fmplex_tools.bench.compare.agreement import Side, agreement
from fmplex_tools.bench.compare.answers import FAILED, LATE, OK, REQUEST, Answers, cdf, jain_index, summary

BEGUN = 5000.0


def answers(*requests: tuple[float, float, float, int, int], tasks: int = 2) -> Answers:
    """``(due, sent, ended, task, outcome)`` of each, in seconds from the beginning."""
    rows = [
        (BEGUN + due, BEGUN + sent, BEGUN + ended, task, 8, outcome) for due, sent, ended, task, outcome in requests
    ]
    return Answers(np.array(rows, REQUEST), BEGUN, tasks, {}, (), 0.0)


def test_latency_counts_from_the_due_time_and_late_ones_count() -> None:
    made = answers(
        (0.5, 0.5, 0.6, 0, OK),  # before the window
        (1.0, 1.2, 1.3, 0, OK),  # sent late
        (2.0, 2.0, 2.1, 1, OK),
        (2.5, 2.5, 2.5, 1, FAILED),  # a fast error is no latency
        (3.0, 3.0, 14.0, 1, LATE),
        (9.0, 9.0, 9.1, 0, OK),  # after it
    )
    found = summary(made, warm=1.0, until=5.0)
    assert (found.requests, found.failed, found.late) == (4, 2, 1)
    assert found.mean_ms == pytest.approx((300 + 100 + 11_000) / 3)
    assert found.p50_ms == pytest.approx(300)
    assert found.max_ms == pytest.approx(11_000)
    assert found.task_mean_ms == pytest.approx((300, 5550))
    assert found.offered_per_s == 1.0
    assert found.answered_per_s == 0.5
    assert found.generator_late_ms == pytest.approx(np.percentile([200, 0, 0, 0], 99))


def test_share_of_demand() -> None:
    """Task 0 gets all that it asks for, task 1 half, task 2 asks for nothing."""
    rows = [(1 + i / 10, 1.0, 2.0, i % 2, OK if i % 4 != 1 else LATE) for i in range(20)]
    found = summary(answers(*rows, tasks=3), warm=1.0, until=5.0)
    assert found.jain == pytest.approx((1 + 0.5) ** 2 / (2 * (1 + 0.25)))
    assert math.isnan(found.task_mean_ms[2])


def test_what_comes_after_the_window_is_no_goodput_but_a_latency() -> None:
    found = summary(answers((1.0, 1.0, 7.0, 0, OK), (1.0, 1.0, 2.0, 1, OK)), warm=0.0, until=5.0)
    assert (found.answered_per_s, found.failed, found.max_ms) == (0.2, 0, pytest.approx(6000))
    assert found.jain == pytest.approx(0.5)


def test_nothing_answered() -> None:
    found = summary(answers((1.0, 1.0, 1.0, 0, FAILED)), warm=0.0, until=2.0)
    assert (found.failed, found.answered_per_s, found.jain) == (1, 0, 0)
    assert all(map(math.isnan, (found.mean_ms, found.p50_ms, found.p99_ms, found.max_ms)))
    assert cdf(answers((1.0, 1.0, 1.0, 0, FAILED))) == []


def test_an_empty_window_is_refused() -> None:
    made = answers((1.0, 1.0, 1.1, 0, OK))
    with pytest.raises(InvalidInput, match="no request was due from 2 to 3 s"):
        summary(made, warm=2.0, until=3.0)
    with pytest.raises(InvalidInput, match="must end after it begins"):
        summary(made, warm=2.0, until=2.0)


def test_figures_are_plain_data() -> None:
    found = summary(answers((1.0, 1.0, 1.1, 0, OK), (1.5, 1.5, 1.6, 1, OK)), warm=0.0, until=2.0)
    told = json.loads(json.dumps(dataclasses.asdict(found)))
    assert told["jain"] == 1
    assert told["task_mean_ms"] == pytest.approx([100, 100])


def test_distribution() -> None:
    made = answers(*((i / 100, i / 100, i / 100 + (i + 1) / 1000, 0, OK) for i in range(100)))
    points = cdf(made, 3)
    assert [part for _, part in points] == [0, 0.5, 1]
    assert [ms for ms, _ in points] == pytest.approx([1, 50.5, 100])
    assert cdf(made, 2, until=0.5)[-1] == pytest.approx((50, 1))


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=20))
def test_jain_is_between_one_of_n_and_1(shares: list[float]) -> None:
    index = jain_index(np.array(shares))
    assert index == 0 if not any(shares) else 1 / len(shares) - 1e-9 <= index <= 1 + 1e-9


def test_agreement_is_of_the_same_pair_of_turns() -> None:
    """A machine that is half as fast for a while is so for both."""
    theirs = [Side(100, 10, 9, 20), Side(50, 20, 18, 40), Side(100, 10, 9, 20)]
    ours = [Side(102, 10, 9, 22), Side(51, 20, 18, 44), Side(51, 20, 18, 44)]
    found = agreement(list(zip(theirs, ours, strict=True)))
    assert found.perf_analyzer == Side(100, 10, 9, 20)
    assert found.ours == Side(51, 20, 18, 44)
    assert found.ratios == Side(pytest.approx(1.02), 1, 1, pytest.approx(1.1))
