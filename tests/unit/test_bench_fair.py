"""How `fmplex bench fair` counts: rows that ran for nobody, rates, latencies, shares over time, times to settle."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from fmplex_tools.bench.fair.bench import HEAD, LORA, Figure, Outcome, Phase
from fmplex_tools.bench.fair.generator import POOL, make_requests, vary
from fmplex_tools.bench.fair.isolation import rows_unanswered
from fmplex_tools.bench.fair.report import as_json, plots, table
from fmplex_tools.bench.fair.shares import _times, share_series
from fmplex_tools.bench.fair.streams import OK, REFUSED, REQUEST, ROW, Stream, Traffic, latencies, merge
from fmplex_tools.top.scrape import FmScrape

NOTHING = FmScrape()


def rows(*batches: tuple[float, int, int]) -> np.ndarray:
    """``(seconds, rows in it, rows answered)`` of each batch."""
    return np.array([(0, 0.0, seconds, size) for seconds, size, seen in batches for _ in range(seen)], ROW)


@pytest.mark.parametrize(
    ("batches", "missing"),
    [
        ([(0.1, 8, 8), (0.2, 8, 8)], 0),
        ([(0.1, 8, 7), (0.2, 8, 8)], 1),
        ([(0.1, 8, 8), (0.1, 8, 5)], 3),  # two batches that took the same time
        ([(0.1, 8, 8), (0.1, 4, 1)], 3),
        ([], 0),
    ],
)
def test_rows_that_ran_for_nobody(batches: list[tuple[float, int, int]], missing: int) -> None:
    assert rows_unanswered(rows(*batches)) == missing


def traffic(vfm: str, *requests: tuple[float, float, int, int]) -> Traffic:
    """``(due, ended, rows, outcome)`` of each; every row of an answered one ran 0.2 s in a batch of 4."""
    made = np.array([(0, due, due + 0.01, ended, n, outcome) for due, ended, n, outcome in requests], REQUEST)
    ran = [(i, 0.0, 0.2, 4) for i, (_, _, n, outcome) in enumerate(requests) if outcome == OK for _ in range(n)]
    return Traffic((Stream(vfm),), made, np.array(ran, ROW))


def test_traffic_of_several_processes() -> None:
    first = traffic(HEAD, (0, 1, 4, OK), (1, 2, 4, REFUSED), (2, 3, 4, OK), (3, 5, 2, OK))
    both = merge([first, traffic(LORA, (0, 4, 1, OK))])
    assert both.rate(HEAD, 0, 10) == pytest.approx(6 / 4)  # the first answer only starts the clock
    assert both.rate([HEAD, LORA], 0, 4.5) == pytest.approx(5 / 3)
    assert both.rate(LORA, 0, 10) == 0
    assert len(both.of(HEAD, None)) == 4
    assert len(both.of(HEAD, REFUSED)) == 1
    assert list(latencies(both.of(HEAD, since=2))) == [1, 2]
    assert len(both.rows_of(HEAD)) == 10
    assert list(both.ended(both.rows_of(LORA))) == [4]


def test_share_counts_where_the_batch_ran() -> None:
    head, lora = traffic(HEAD, (0, 0.5, 2, OK)), traffic(LORA, (0, 0.5, 2, OK), (0, 1.1, 4, OK))
    phase = Phase(merge([head, lora]), 0.0, 1.3, NOTHING, NOTHING)
    ends, shares = share_series(phase)
    assert ends == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.25])
    assert shares[1] == pytest.approx(0.5)
    assert list(shares[3:]) == pytest.approx([1, 1])  # 0.1 s of the last batch on either side
    assert np.isnan(shares[[0, 2]]).all()


def test_time_until_a_share_has_settled() -> None:
    times = np.arange(1, 21) * 0.25
    shares = np.where(times <= 1.5, 0.5, np.where(times <= 2.0, 0.7, 0.8))
    assert _times(times, shares, 1.2, 5.0, 0.5, 0.8) == pytest.approx((0.55, 0.8))  # 0.7, 0.8, 0.8, 0.8 is settled
    assert _times(times, np.full(20, 0.5), 1.2, 5.0, 0.5, 0.8) == (np.inf, np.inf)


def test_requests_have_the_tokens_and_the_timeout_asked_for() -> None:
    made = make_requests(Stream("spam", (8, 40), rows=2, timeout_us=500), seed=0)
    assert len(made) == POOL
    for request in made:
        assert request.inputs[0].shape == [2, 1]
        assert request.parameters["timeout"].int64_param == 500
        content = request.raw_input_contents[0]
        (size,) = struct.unpack_from("<I", content)
        first, second = content[4 : 4 + size], content[8 + size :]
        assert sorted(len(text.split()) for text in (first, second)) == [6, 38]
    assert made != make_requests(Stream("spam", (8, 40), rows=2, timeout_us=500), seed=1)


def test_texts_are_others_whenever_they_are_sent_again() -> None:
    """Of the same length in bytes and words; only those too short to be changed stay."""
    (request, *_) = make_requests(Stream("spam", (12, 5), rows=3), seed=0)
    seen, sizes = set(), set()
    for times in range(1, 100):
        vary(request, times)
        seen.add(request.raw_input_contents[0])
        sizes.add((len(request.raw_input_contents[0]), len(request.raw_input_contents[0].split())))
    assert len(seen) == 99
    assert len(sizes) == 1


def test_report(tmp_path: Path) -> None:
    edits = [{"t_s": 1.0, "title": "1 → 4", "share": 0.8}, {"t_s": 2.0, "title": "4 → 1", "share": 0.5}]
    series = {"t_s": [0.5, 1.0, 1.5, 2.0, 2.5], "share": [0.5, None, 0.8, 0.8, 0.5], "edits": edits}
    flood = {"alone_ms": list(range(1, 102)), "flood_ms": list(range(1, 102)), "flooder_ms": []}
    outcomes = {
        "weight-edit": Outcome([Figure("weight-edit", "settled", np.inf, "s", "≤ 2 s", False)], series),
        "flood": Outcome([Figure("flood", "light failed", 0, "", "0", True)], flood),
    }
    assert table(outcomes).row_count == 4
    assert '"cores": 2' in as_json(outcomes, {"cores": 2})
    drawn = plots(outcomes, tmp_path / "plots")
    assert [file.name for file in drawn] == ["fair_weight_edit.png", "fair_flood.png"]
    assert all(1_000 < file.stat().st_size < 100_000 for file in drawn)
