"""The load of a comparison: rates, shares, lengths, and that a seed says all of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from fmplex_backend.errors import InvalidInput
from fmplex_tools.bench.compare.texts import MAX_TOKENS, MIN_TOKENS, WORDS, Texts
from fmplex_tools.bench.compare.workload import (
    LONG,
    MIXED,
    MIXED_MEDIAN,
    SHORT,
    Schedule,
    Workload,
    digest,
    schedule,
)

BOUNDS = {"short": SHORT, "long": LONG, "mixed": MIXED}
WORKLOADS = st.builds(
    Workload,
    tasks=st.integers(1, 12),
    rate=st.floats(0.1, 200),
    seconds=st.floats(0.1, 20),
    seed=st.integers(0, 2**32),
    popularity=st.sampled_from(["equal", "zipf"]),
    exponent=st.floats(0, 2),
    arrivals=st.sampled_from(["poisson", "bursty"]),
    lengths=st.sampled_from(list(BOUNDS)),
    flood=st.sampled_from([0.0, 50.0]),
)


def same(one: Schedule, other: Schedule) -> bool:
    pairs = ((one.due, other.due), (one.task, other.task), (one.tokens, other.tokens))
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)


@settings(max_examples=50)
@given(WORKLOADS)
def test_a_schedule_is_ordered_bounded_and_the_same_again(workload: Workload) -> None:
    made = schedule(workload)
    assert (made.due.dtype, made.task.dtype, made.tokens.dtype) == (np.float64, np.int32, np.int32)
    assert len(made.due) == len(made.task) == len(made.tokens) == len(made)
    assert (np.diff(made.due) >= 0).all()
    low, high = BOUNDS[workload.lengths]
    for values, least, most in ((made.tokens, low, high), (made.task, 0, workload.tasks - 1)):
        assert ((least <= values) & (values <= most)).all()
    assert ((made.due >= 0) & (made.due < workload.seconds)).all()
    assert same(made, schedule(workload))
    assert digest(made) == digest(schedule(workload))


@settings(max_examples=30)
@given(WORKLOADS, st.floats(0.1, 10))
def test_a_longer_schedule_begins_with_the_shorter_one(workload: Workload, more: float) -> None:
    short, long = schedule(workload), schedule(replace(workload, seconds=workload.seconds + more))
    cut = np.searchsorted(long.due, workload.seconds)
    assert same(short, Schedule(long.due[:cut], long.task[:cut], long.tokens[:cut]))


@pytest.mark.parametrize("arrivals", ["poisson", "bursty"])
@pytest.mark.parametrize("popularity", ["equal", "zipf"])
def test_rates_are_those_asked_for(arrivals: Any, popularity: Any) -> None:
    workload = Workload(tasks=8, rate=40, seconds=2000, popularity=popularity, arrivals=arrivals, lengths="short")
    made = schedule(workload)
    rates = np.bincount(made.task, minlength=8) / workload.seconds
    assert rates == pytest.approx(workload.rates(), rel=0.15)
    assert rates.sum() == pytest.approx(40, rel=0.05)
    assert workload.rates()[0] / workload.rates()[7] == pytest.approx(8 if popularity == "zipf" else 1)


def counts(made: Schedule, task: int, window: float) -> np.ndarray:
    """Requests of ``task`` in each window."""
    return np.bincount((made.due[made.task == task] / window).astype(int))


def test_bursts_come_in_bursts() -> None:
    """Variance over mean of counts in windows of 0.5 s: 1 for Poisson, far more for bursts."""
    index = {}
    for arrivals in ("poisson", "bursty"):
        found = counts(schedule(Workload(tasks=1, rate=20, seconds=1000, arrivals=arrivals)), 0, 0.5)
        index[arrivals] = found.var() / found.mean()
    assert index["poisson"] == pytest.approx(1, abs=0.15)
    assert index["bursty"] > 8


def test_the_flood_is_task_0_alone_and_changes_nothing_else() -> None:
    calm = Workload(tasks=4, rate=40, seconds=100)
    without, flooded = schedule(calm), schedule(replace(calm, flood=200.0))
    assert (flooded.task == 0).sum() - (without.task == 0).sum() == pytest.approx(200 * 100, rel=0.05)
    for task in (1, 2, 3):
        assert np.array_equal(flooded.due[flooded.task == task], without.due[without.task == task])
        assert np.array_equal(flooded.tokens[flooded.task == task], without.tokens[without.task == task])
    assert digest(flooded) != digest(without)


def test_lengths() -> None:
    found = {name: schedule(Workload(tasks=2, rate=1000, seconds=20, lengths=name)).tokens for name in BOUNDS}
    for name in ("short", "long"):
        low, high = BOUNDS[name]
        values, times = np.unique(found[name], return_counts=True)
        assert values.tolist() == list(range(low, high + 1))
        assert times == pytest.approx(np.full(len(values), 20_000 / len(values)), rel=0.2)
    assert np.median(found["mixed"]) == pytest.approx(MIXED_MEDIAN, abs=1)
    assert found["mixed"].mean() == pytest.approx(32.4, rel=0.03)
    assert (found["mixed"] == MIXED[0]).mean() == pytest.approx(0.097, abs=0.02)
    assert (found["mixed"] == MIXED[1]).mean() == pytest.approx(0.019, abs=0.01)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tasks": 0}, "tasks 0; at least 1"),
        ({"rate": 0.0}, "rate 0.0; more than 0"),
        ({"rate": float("inf")}, "rate inf; a finite number"),
        ({"seconds": -1.0}, "seconds -1.0; more than 0"),
        ({"seed": -1}, "seed -1; at least 0"),
        ({"flood": float("nan")}, "flood nan; a finite number"),
        ({"flood": -1.0}, "flood -1.0; at least 0"),
        ({"exponent": -0.5}, "exponent -0.5; at least 0"),
        ({"popularity": "even"}, "popularity 'even'; one of equal, zipf"),
        ({"arrivals": "uniform"}, "arrivals 'uniform'; one of poisson, bursty"),
        ({"lengths": "huge"}, "lengths 'huge'; one of short, long, mixed"),
    ],
)
def test_what_is_wrong_is_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        schedule(Workload(**{"tasks": 2, "rate": 1.0, "seconds": 1.0} | wrong))


def test_texts_have_the_tokens_asked_for_and_are_never_the_same(minilm_backbone: Path) -> None:
    """By the real tokenizer, [CLS] and [SEP] included; also the shortest ones differ."""
    tokenizer = Tokenizer.from_file(str(minilm_backbone / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    texts = Texts(seed=7)
    for tokens in (MIN_TOKENS, 8, 33, 128, MAX_TOKENS):
        rows = tokenizer.encode_batch([texts.make(number, tokens) for number in range(0, 70_000, 997)])
        assert {len(row.ids) for row in rows} == {tokens}
    assert tokenizer.token_to_id("[UNK]") not in {tokenizer.token_to_id(word) or 0 for word in WORDS}
    numbers = [*range(5000), 64**3, 64**4 - 1]
    assert len({texts.make(number, MIN_TOKENS) for number in numbers}) == len(numbers)
    assert texts.make(3, 40) == Texts(seed=7).make(3, 40) != Texts(seed=8).make(3, 40)
    for tokens in (MIN_TOKENS - 1, MAX_TOKENS + 1):
        with pytest.raises(InvalidInput, match=f"{tokens} tokens"):
            texts.make(0, tokens)
