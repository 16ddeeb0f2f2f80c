"""What is counted, how much it may take, and what of it is sent to the server."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from support.live import wait_for

from fmplex_backend.errors import DeadlineExceeded, EngineFailure, FMplexError, InvalidInput, Unavailable
from fmplex_backend.host import publishing
from fmplex_backend.host.counts import FM_SERIES, LATENCY_EDGES, VFM_SERIES, Histogram, Series, outcome_of
from fmplex_backend.host.metrics import Meter, Snapshot
from fmplex_backend.host.publishing import Publisher
from fmplex_backend.scheduling.cost import CostModel
from fmplex_backend.scheduling.fair import BatchFairQueue
from fmplex_backend.scheduling.interface import Batch, Row, VfmPolicy


def labels_of(series: Series) -> str:
    return ",".join(series.labels.values())


def values(snapshot: Snapshot, vfm: str | None) -> dict[str, float]:
    """Everything that is not zero of one vFM, or of the physical FM: ``name`` or ``name{label}`` → value."""
    return {
        f"{series.name}{{{labels_of(series)}}}" if series.labels else series.name: value
        for series, of, value in snapshot.samples()
        if of == vfm and value
    }


def batch_of(sizes: dict[str, list[int]], submitted: float = 0.0) -> Batch:
    """A batch as the real queue makes it."""
    queue = BatchFairQueue(64, CostModel(alpha=1.0, beta=1e-6))
    for vfm, lengths in sizes.items():
        queue.add_vfm(vfm, VfmPolicy(), submitted)
        queue.submit([Row(vfm, size, None) for size in lengths], submitted)
    batch = queue.next_batch(submitted).batch
    assert batch is not None
    assert len(batch.rows) == sum(len(lengths) for lengths in sizes.values())
    return batch


@pytest.fixture
def meter() -> Meter:
    meter = Meter(engines=2)
    meter.set_policy("a", 3.0, 0.1)
    meter.set_policy("b", 1.0, None)
    return meter


def test_names_keep_to_the_conventions() -> None:
    kinds: dict[str, tuple[str, str]] = {}
    for series in (*FM_SERIES, *VFM_SERIES):
        assert re.fullmatch(r"fmplex_[a-z_]+", series.name)
        assert kinds.setdefault(series.name, (series.kind, series.help)) == (series.kind, series.help)
        assert (series.kind == "counter") == series.name.endswith(("_total", "_sum", "_count", "_bucket"))
    for layout in (FM_SERIES, VFM_SERIES):
        assert len({(s.name, labels_of(s)) for s in layout}) == len(layout)


def test_a_batch(meter: Meter) -> None:
    batch = batch_of({"a": [10, 10, 4], "b": [6]}, submitted=100.0)
    meter.decided(batch, 2e-4)
    assert values(meter.snapshot(100.0, {"b": 7}), "a")["fmplex_running_rows"] == 3
    meter.completed(batch, {"a": 0.3, "b": 0.1}, measured=0.4, started=101.0, now=101.5)
    snapshot = meter.snapshot(101.9, {"b": 7})
    a, b, fm = (values(snapshot, who) for who in ("a", "b", None))
    assert "fmplex_running_rows" not in a
    assert (a["fmplex_rows_total{served}"], b["fmplex_rows_total{served}"]) == (3, 1)
    assert a["fmplex_row_queue_seconds_sum"] == pytest.approx(3.0)
    assert a["fmplex_row_compute_seconds_sum"] == pytest.approx(1.5)
    assert a["fmplex_row_queue_seconds_count"] == 3
    assert (a["fmplex_device_seconds_total"], b["fmplex_device_seconds_total"]) == (0.3, 0.1)
    assert (a["fmplex_share_ratio"], b["fmplex_share_ratio"]) == (0.75, 0.25)
    assert (a["fmplex_entitled_share_ratio"], b["fmplex_entitled_share_ratio"]) == (0.75, 0.25)
    assert b["fmplex_queue_rows"] == 7
    assert (fm["fmplex_useful_tokens_total"], fm["fmplex_padding_tokens_total"]) == (30, 10)
    assert (fm["fmplex_batch_rows_sum"], fm["fmplex_batch_rows_count"]) == (4, 1)
    assert (fm["fmplex_batch_vfms_sum"], fm["fmplex_batch_vfms_bucket{2}"]) == (2, 1)
    assert "fmplex_batch_vfms_bucket{1}" not in fm
    assert fm["fmplex_engine_busy_seconds_total"] == pytest.approx(0.5)
    assert fm["fmplex_batch_seconds_total"] == 0.4
    assert fm["fmplex_cost_error_ratio"] == pytest.approx(abs(batch.predicted - 0.4) / 0.4)
    assert fm["fmplex_decision_seconds_sum"] == fm["fmplex_decision_seconds_max"] == 2e-4
    assert (fm["fmplex_engines"], fm["fmplex_vfms"]) == (2, 2)


def test_rows_without_an_answer_are_failed_and_not_served(meter: Meter) -> None:
    batch = batch_of({"a": [5, 5]}, submitted=1.0)
    meter.completed(batch, {"a": 0.1}, 0.1, started=3.0, now=4.0, failed=frozenset(batch.rows[:1]))
    a = values(meter.snapshot(4.0, {}), "a")
    assert (a["fmplex_rows_total{served}"], a["fmplex_rows_total{failed}"]) == (1, 1)
    assert (a["fmplex_row_queue_seconds_sum"], a["fmplex_row_compute_seconds_sum"]) == pytest.approx((2.0, 1.0))


def test_a_lost_batch_runs_no_more(meter: Meter) -> None:
    batch = batch_of({"a": [5, 5]})
    meter.decided(batch, 0.0)
    meter.lost(batch)
    snapshot = meter.snapshot(1.0, {})
    assert "fmplex_running_rows" not in values(snapshot, "a")
    assert values(snapshot, None)["fmplex_lost_batches_total"] == 1


def test_requests_by_how_they_end(meter: Meter) -> None:
    meter.answered(["a", "b"], "served", 0.04)
    meter.answered(["a"], "served", 0.1)
    meter.answered(["a"], "served", 7.0)
    meter.answered(["a"], "expired", 0.01)
    meter.answered(["a"], "rejected", 0.01)  # at the end of the host
    meter.refused(["a"], 5, "rejected", "queue_full")
    meter.refused(["a"], 2, "rejected", "rate_limit")
    meter.refused(["a"], 1, "invalid")
    meter.expired("a", "passed")
    meter.ended("a", "cancelled")
    meter.unroutable()
    snapshot = meter.snapshot(1.0, {})
    a, b = values(snapshot, "a"), values(snapshot, "b")
    requests = {key: count for key, count in a.items() if key.startswith("fmplex_requests")}
    assert requests == {
        f"fmplex_requests_total{{{k}}}": n for k, n in {"served": 3, "rejected": 3, "expired": 1, "invalid": 1}.items()
    }
    rows = {key: count for key, count in a.items() if key.startswith("fmplex_rows")}
    assert rows == {
        f"fmplex_rows_total{{{k}}}": n for k, n in {"rejected": 7, "expired": 1, "invalid": 1, "cancelled": 1}.items()
    }
    assert (a["fmplex_rejections_total{queue_full}"], a["fmplex_rejections_total{rate_limit}"]) == (1, 1)
    assert a["fmplex_expiries_total{passed}"] == 1
    assert (a["fmplex_slo_requests_total{met}"], a["fmplex_slo_requests_total{missed}"]) == (2, 2)
    assert a["fmplex_slo_seconds"] == 0.1
    assert not any("slo" in key for key in b), "it has no objective"
    assert (a["fmplex_request_seconds_count"], a["fmplex_request_seconds_bucket{0.1}"]) == (3, 2)
    assert a["fmplex_request_seconds_bucket{+Inf}"] == 3
    assert values(snapshot, None)["fmplex_unroutable_requests_total"] == 1


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, "served"),
        (DeadlineExceeded("x"), "expired"),
        (Unavailable("x"), "rejected"),
        (InvalidInput("x"), "invalid"),
        (EngineFailure("x"), "failed"),
    ],
)
def test_outcome_of_a_reply(error: FMplexError | None, outcome: str) -> None:
    assert outcome_of(error) == outcome


def test_histogram() -> None:
    histogram = Histogram(LATENCY_EDGES)
    observed = [0.0, 0.001, 0.0011, 0.05, 4.9, 5.0, 5.1, 100.0]
    for value in observed:
        histogram.observe(value)
    for index, edge in enumerate((*LATENCY_EDGES, float("inf"))):
        assert histogram.up_to(index) == sum(value <= edge for value in observed), edge
    assert histogram.count == len(observed)
    assert histogram.sum == pytest.approx(sum(observed))


# ---- shares ----


def charge(meter: Meter, now: float, **seconds: float) -> None:
    meter.completed(batch_of({vfm: [1] for vfm in seconds}), seconds, 1.0, now - 1, now)


def test_shares_are_of_the_last_two_seconds_and_of_who_is_active(meter: Meter) -> None:
    meter.set_policy("c", 4.0, None)
    charge(meter, 0.0, a=1.0)
    for now in range(6):
        if now >= 2:
            charge(meter, now, b=0.1)
        snapshot = meter.snapshot(float(now), {})
    a, b, c = (values(snapshot, vfm) for vfm in "abc")
    assert (b["fmplex_share_ratio"], b["fmplex_entitled_share_ratio"]) == (1, 1)
    assert "fmplex_share_ratio" not in a
    assert "fmplex_entitled_share_ratio" not in a
    snapshot = meter.snapshot(6.0, {"c": 1})
    b, c = values(snapshot, "b"), values(snapshot, "c")
    assert (c["fmplex_entitled_share_ratio"], b["fmplex_entitled_share_ratio"]) == (0.8, 0.2), (
        "it waits, so it is active"
    )
    assert "fmplex_share_ratio" not in c


def test_the_slowest_decision_is_forgotten(meter: Meter) -> None:
    meter.snapshot(0.0, {})
    meter.decided(batch_of({"a": [1]}), 0.5)
    seen = [values(meter.snapshot(now, {}), None).get("fmplex_decision_seconds_max") for now in (1.0, 2.0, 3.0, 4.0)]
    assert seen == [0.5, 0.5, 0.5, None]


# ---- bounds ----


def test_a_removed_vfm_is_forgotten(meter: Meter) -> None:
    meter.answered(["a"], "served", 0.1)
    meter.remove("a")
    meter.answered(["a"], "served", 0.1)
    meter.decided(batch_of({"a": [1]}), 0.1)
    assert meter.vfms() == ["b"]
    assert [vfm for vfm, _ in meter.snapshot(0.0, {}).vfms] == ["b"]
    meter.set_policy("a", 1.0, None)
    assert values(meter.snapshot(1.0, {}), "a") == {"fmplex_weight": 1}, "it begins anew"


def test_memory_does_not_grow_with_what_was_done(meter: Meter) -> None:
    def size_of(thing: Any, seen: set[int]) -> int:
        if id(thing) in seen or isinstance(thing, (type, str)) or callable(thing):
            return 0
        seen.add(id(thing))
        parts: list[Any] = []
        if isinstance(thing, dict):
            parts += [*thing.keys(), *thing.values()]
        elif hasattr(thing, "__iter__"):
            parts += list(thing)
        parts += [getattr(thing, name) for name in getattr(thing, "__slots__", ()) if hasattr(thing, name)]
        parts += list(getattr(thing, "__dict__", {}).values())
        return sys.getsizeof(thing) + sum(size_of(part, seen) for part in parts)

    def work() -> int:
        for turn in range(300):
            meter.completed(batch_of({"a": [turn + 1], "b": [5]}), {"a": 0.01, "b": 0.1}, 0.1, turn, turn + 0.1)
            meter.answered(["a"], "served", turn / 100)
            meter.refused(["b"], 3, "rejected", "queue_full")
            meter.snapshot(turn / 10, {"a": turn})
        return size_of(meter.__dict__, set())

    first, second = work(), work()
    assert second <= first * 1.1
    for number in range(100):
        meter.set_policy(f"more{number}", 1.0, None)
        meter.answered([f"more{number}"], "served", 0.5)
    for now in range(100, 104):
        meter.snapshot(float(now), {})
    each = (size_of(meter.__dict__, set()) - second) / 100
    assert each < 6000, "docs/metrics.md says how much"


def test_idle_vfms_cost_next_to_nothing(meter: Meter) -> None:
    before = meter.snapshot(0.0, {}).vfms
    after = meter.snapshot(1.0, {}).vfms
    assert all(after[key] is before[key] for key in before)
    meter.answered(["a"], "served", 0.1)
    changed = meter.snapshot(2.0, {}).vfms
    assert [key[0] for key in changed if changed[key] is not after[key]] == ["a"]


def test_events_from_many_threads_are_all_counted(meter: Meter) -> None:
    def work() -> None:
        for _ in range(500):
            meter.answered(["a"], "served", 0.01)
            meter.refused(["a"], 1, "rejected", "rate_limit")

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        meter.snapshot(0.0, {})
    a = values(meter.snapshot(0.0, {}), "a")
    assert (a["fmplex_requests_total{served}"], a["fmplex_rejections_total{rate_limit}"]) == (4000, 4000)


# ---- what is sent ----


class FakeServer:
    """Takes metrics as Triton does, and refuses what it refuses."""

    def __init__(self) -> None:
        self.series: dict[tuple[str, str], float] = {}
        self.calls = 0

    def open_family(self, series: Series) -> FakeFamily:
        self.calls += 1
        return FakeFamily(self, series)

    def of(self, vfm: str) -> dict[str, float]:
        return {name: value for (name, labels), value in self.series.items() if f"vfm={vfm}" in labels}


class FakeFamily:
    def __init__(self, server: FakeServer, series: Series) -> None:
        self.server, self.series, self.keys = server, series, []  # type: ignore[var-annotated]

    def Metric(self, *, labels: dict[str, str]) -> FakeMetric:  # noqa: N802
        key = (self.series.name, ",".join(f"{k}={v}" for k, v in sorted(labels.items())))
        assert key not in self.server.series, f"{key} is there already"
        self.server.calls += 1
        self.server.series[key] = 0.0
        self.keys.append(key)
        return FakeMetric(self.server, key, self.series.kind)

    def __del__(self) -> None:
        for key in self.keys:
            del self.server.series[key]


class FakeMetric:
    def __init__(self, server: FakeServer, key: tuple[str, str], kind: str) -> None:
        self.server, self.key, self.kind = server, key, kind

    def increment(self, value: float) -> None:
        assert self.kind == "counter"
        assert value > 0
        self.server.calls += 1
        self.server.series[self.key] += value

    def set(self, value: float) -> None:
        assert self.kind == "gauge"
        self.server.calls += 1
        self.server.series[self.key] = value


@pytest.fixture
def server() -> FakeServer:
    return FakeServer()


@pytest.fixture
def clock() -> Iterator[float]:
    return iter(float(second) for second in range(10_000))


@pytest.fixture
def publisher(meter: Meter, server: FakeServer, clock: Iterator[float]) -> Publisher:
    return Publisher("m", lambda: meter.snapshot(next(clock), {}), server.open_family, lambda line: None)


def test_what_the_server_has_is_what_was_counted(meter: Meter, server: FakeServer, publisher: Publisher) -> None:
    publisher.publish()
    assert server.of("b") == {"fmplex_weight": 1}, "nothing has happened to it: no other series"
    charge(meter, 5.0, a=0.25, b=0.5)
    for seconds in (0.01, 0.3):
        meter.answered(["a"], "served", seconds)
        publisher.publish()
    published = {(name, labels): value for (name, labels), value in server.series.items() if value}
    expected = {}
    for series, vfm, value in meter.snapshot(2.0, {}).samples():
        labels = {"fm": "m", **series.labels, **({"vfm": vfm} if vfm else {})}
        if value:
            expected[series.name, ",".join(f"{k}={v}" for k, v in sorted(labels.items()))] = value
    stamp = ("fmplex_snapshot_timestamp_seconds", "fm=m")
    assert published.pop(stamp) <= expected.pop(stamp)
    assert published == pytest.approx(expected)
    buckets = [name for name, labels in server.series if name == "fmplex_request_seconds_bucket" and "vfm=a" in labels]
    assert len(buckets) == len(LATENCY_EDGES) + 1, "a histogram is there whole"


def test_only_changes_are_sent(meter: Meter, server: FakeServer, publisher: Publisher) -> None:
    publisher.publish()
    before = server.calls
    publisher.publish()
    assert server.calls == before + 1, "the time of the snapshot alone"
    meter.answered(["b"], "served", 3.0)
    publisher.publish()
    before = server.calls
    meter.answered(["b"], "served", 3.0)
    publisher.publish()
    assert server.calls == before + 1 + 5, "requests, sum, count and the buckets of 5 s and infinity"


def test_series_of_a_removed_vfm_go_and_one_of_its_name_begins_anew(
    meter: Meter, server: FakeServer, publisher: Publisher
) -> None:
    meter.answered(["a"], "served", 0.1)
    publisher.publish()
    assert server.of("a")["fmplex_requests_total"] == 1
    meter.remove("a")
    meter.set_policy("a", 1.0, None)
    publisher.publish()
    assert server.of("a") == {"fmplex_weight": 1}
    meter.remove("a")
    publisher.publish()
    assert server.of("a") == {}
    assert server.of("b")


def test_stop_ends_every_series(meter: Meter, server: FakeServer, publisher: Publisher) -> None:
    publisher.start()
    wait_for(lambda: server.series.get(("fmplex_vfms", "fm=m")), "published")
    publisher.stop()
    assert not server.series
    assert not publisher._thread.is_alive()


def test_stop_before_start(publisher: Publisher) -> None:
    publisher.stop()


def test_sending_takes_a_tenth_of_the_time_and_stops_at_once(
    meter: Meter, server: FakeServer, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(400):
        meter.set_policy(f"v{number}", 1.0, None)
    pauses: list[float] = []

    def wait(seconds: float) -> bool:
        pauses.append(seconds)
        return len(pauses) >= 3

    now = iter(i * 1e-4 for i in range(10_000))
    monkeypatch.setattr(publisher._stop, "wait", wait)
    monkeypatch.setattr(publishing.time, "monotonic", lambda: next(now))
    publisher.publish()
    assert len(pauses) == 3, "at the third pause it was told to stop"
    assert all(pause == pytest.approx(9 * publishing.BURST, rel=0.2) for pause in pauses)
    assert ("fmplex_vfms", "fm=m") not in server.series


def test_a_defect_ends_the_metrics_and_nothing_else(meter: Meter, monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    def refuse(series: Series) -> Any:
        raise RuntimeError("no such thing")

    monkeypatch.setattr(publishing, "INTERVAL", 0.01)
    publisher = Publisher("m", lambda: meter.snapshot(0.0, {}), refuse, log.append)
    publisher.start()
    wait_for(lambda: log, "the log says so")
    publisher.stop()
    assert log == ["defect: no metrics from here on: RuntimeError: no such thing"]
