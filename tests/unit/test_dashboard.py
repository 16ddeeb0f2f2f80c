"""What `fmplex dashboard` shows, without a browser: figures, silence, history, placement, what the table is told."""

from __future__ import annotations

import dataclasses
import itertools
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmplex_backend.errors import InvalidInput, NotFound, Unavailable
from fmplex_tools.dashboard import placement as placing
from fmplex_tools.dashboard.followed import FROZEN, VFM_FIELDS, Followed
from fmplex_tools.dashboard.history import SPAN, Ring, Series, line_of
from fmplex_tools.dashboard.view import TONES, FleetView, ServerView, Silence, Snapshot, headline, rows, vfm_state
from fmplex_tools.dashboard.watch import Watch, metrics_of
from fmplex_tools.dashboard.words import MARKS, count, few, lasting, number, since
from fmplex_tools.dashboard_cli import dashboard
from fmplex_tools.server.process import free_ports
from fmplex_tools.top.figures import VfmFigures, fm_figures
from fmplex_tools.top.scrape import FmScrape, parse

NAMES = ("idle", "news", "reviews")
NOON = 1_700_000_000.0


def told(step: int, names: tuple[str, ...] = NAMES, fm: str = "minilm", engines: int = 2) -> dict[str, FmScrape]:
    """What a host has counted ``step`` seconds after its start: the first vFM idle, others with rows and requests."""
    lines = [
        f'fmplex_snapshot_timestamp_seconds{{fm="{fm}"}} {NOON + step}',
        f'fmplex_engines{{fm="{fm}"}} {engines}',
        f'fmplex_engine_busy_seconds_total{{fm="{fm}"}} {step * 0.5}',
    ]
    for place, name in enumerate(names):
        labels = f'fm="{fm}",vfm="{name}"'
        lines.append(f"fmplex_weight{{{labels}}} {place + 1}")
        if place:
            lines += [
                f'fmplex_rows_total{{{labels},outcome="served"}} {step * 10 * place}',
                f'fmplex_requests_total{{{labels},outcome="served"}} {step * place}',
                f'fmplex_requests_total{{{labels},outcome="rejected"}} {step * (place - 1)}',
                f"fmplex_queue_rows{{{labels}}} {place}",
                f"fmplex_share_ratio{{{labels}}} {place / 10}",
                f'fmplex_request_seconds_bucket{{{labels},le="{place / 10}"}} {step * place}',
                f'fmplex_request_seconds_bucket{{{labels},le="+Inf"}} {step * place}',
            ]
    return parse("\n".join(lines))


def seen_twice(name: str = "here", **more: Any) -> ServerView:
    followed = Followed(name, "http://here/metrics", 1)
    followed.answered(NOON, told(1, **more))
    followed.answered(NOON + 2, told(3, **more))
    return followed.view(NOON + 2)


# ---- figures ----


def test_figures_are_those_of_top() -> None:
    (fm,) = seen_twice().fms
    assert fm.measured == fm_figures("minilm", told(1)["minilm"], told(3)["minilm"])


def test_headline_is_the_sum_of_what_answers() -> None:
    sums = headline([seen_twice(), seen_twice("there")])
    assert (sums.rows_per_s, sums.requests_per_s, sums.errors_per_s) == (60, 6, 2)
    assert (sums.queue, sums.vfms, sums.active, sums.engines, sums.busy) == (6, 3, 2, 4, 0.25)
    assert (sums.worst_vfm, sums.worst_p99_ms) == ("reviews", pytest.approx(198))
    assert headline([]).rows_per_s is None


def test_busy_counts_each_engine_once() -> None:
    assert headline([seen_twice(engines=1), seen_twice("there", engines=3)]).busy == pytest.approx((0.5 + 0.5) / 4)


def test_one_look_is_no_figure() -> None:
    followed = Followed("here", "url", 1)
    followed.answered(NOON, told(1))
    view = followed.view(NOON)
    assert headline([view]).rows_per_s is None
    assert {row.state for row in rows([view])} == {"no figures yet"}
    assert {row.figures for row in rows([view])} == {None}


def test_rows_that_want_attention_come_first() -> None:
    made = rows([seen_twice()])
    assert [(row.vfm, row.state) for row in made] == [("reviews", "refusing"), ("idle", "idle"), ("news", "serving")]
    assert len({row.id for row in rows([seen_twice(), seen_twice("there")])}) == 6
    assert {TONES[row.state] for row in made} <= MARKS.keys()


@pytest.mark.parametrize(
    ("change", "state"),
    [
        ({"quarantined": True, "failed_per_s": 1.0}, "quarantined"),
        ({"failed_per_s": 0.5, "rejected_per_s": 1.0}, "failing"),
        ({"expired_per_s": 0.5}, "refusing"),
        ({"queue": 1}, "serving"),
        ({}, "idle"),
    ],
)
def test_states(change: dict[str, Any], state: str) -> None:
    (idle,) = (vfm for vfm in seen_twice().fms[0].figures.vfms if vfm.vfm == "idle")
    assert vfm_state(dataclasses.replace(idle, **change)) == state
    assert state in TONES


# ---- silence ----


def test_a_silent_server_has_no_figures_and_keeps_its_names() -> None:
    followed = Followed("here", "url", 1)
    followed.answered(NOON, told(1))
    followed.answered(NOON + 2, told(3))
    followed.failed(NOON + 3, "refused")
    followed.failed(NOON + 9, "timed out")
    view = followed.view(NOON + 9)
    assert view.silent == Silence(NOON + 3, "timed out")
    assert headline([view]).rows_per_s is headline([view]).errors_per_s is None
    assert [(row.vfm, row.state, row.figures) for row in rows([view])] == [
        (name, "no answer", None) for name in sorted(NAMES)
    ]
    followed.answered(NOON + 10, told(5))
    assert followed.view(NOON + 10).silent is None
    assert headline([followed.view(NOON + 10)]).rows_per_s == 30


def test_a_host_that_tells_nothing_newer_is_silent_though_its_server_answers() -> None:
    followed = Followed("here", "url", 1)
    followed.answered(NOON, told(1))
    followed.answered(NOON + 2, told(3))
    for second in range(3, 3 + int(FROZEN)):
        followed.answered(NOON + second, told(3))
    assert followed.view(NOON + 2 + FROZEN).fms[0].silent is None
    (fm,) = followed.view(NOON + 2.1 + FROZEN).fms
    assert fm.silent is not None
    assert fm.silent.since == NOON + 2
    assert fm.measured is None


def test_a_physical_fm_that_is_gone_is_told_for_a_while_and_then_forgotten() -> None:
    followed = Followed("here", "url", 1)
    followed.answered(NOON, told(1) | told(1, fm="bert"))
    followed.answered(NOON + 2, told(3))
    gone, there = followed.view(NOON + 2).fms
    assert (gone.figures.fm, gone.silent and gone.silent.since, there.silent) == ("bert", NOON + 2, None)
    followed.answered(NOON + 3 + SPAN, told(4))
    assert [fm.figures.fm for fm in followed.view(NOON + 3 + SPAN).fms] == ["minilm"]


def test_a_server_that_began_anew_has_no_negative_rates() -> None:
    followed = Followed("here", "url", 1)
    followed.answered(NOON, told(100))
    followed.answered(NOON + 2, told(102))
    followed.failed(NOON + 3, "refused")
    later = told(1)
    later["minilm"].own.of["fmplex_snapshot_timestamp_seconds", ""] = NOON + 130
    followed.answered(NOON + 30, later)
    assert min(row.figures.rows_per_s for row in rows([followed.view(NOON + 30)]) if row.figures) >= 0


# ---- history ----


@given(
    st.integers(2, 20),
    st.lists(st.tuples(st.floats(0.1, 40), st.one_of(st.none(), st.floats(0, 1e6))), max_size=60),
)
def test_history_is_bounded_ordered_and_what_was_put_in(capacity: int, steps: list[tuple[float, float | None]]) -> None:
    ring, now, put = Ring(("x", "never"), capacity), NOON, []
    for step, value in steps:
        now += step
        ring.append(now, {"x": value})
        ring.append(now, {"x": -1.0})
        put.append((now, value))
    series = ring.series(now)
    expected = [(at, value) for at, value in put[-capacity:] if at - now >= -SPAN]
    assert len(series["x"]) == len(series["never"]) == len(expected)
    for (ago, found), (at, value) in zip(series["x"], expected, strict=True):
        assert ago == pytest.approx(at - now, abs=0.051)
        assert found == (None if value is None else pytest.approx(value, rel=1e-3, abs=1e-30))
    assert all(value is None for _, value in series["never"])


@given(st.lists(st.sampled_from(["answered", "same", "failed"]), max_size=40))
def test_history_has_one_gap_for_each_silence(looks: list[str]) -> None:
    followed, step = Followed("here", "url", 1), 0
    for place, look in enumerate(looks):
        if look == "failed":
            followed.failed(NOON + place, "refused")
        else:
            step += look == "answered"
            followed.answered(NOON + place, told(step))
    points = [value for _, value in followed.history(NOON + len(looks), "minilm").get("rows_per_s", [])]
    assert len(points) <= SPAN + 2
    assert all(None not in pair or pair[0] != pair[1] for pair in itertools.pairwise(points))
    assert all(value is None or value >= 0 for value in points)


def test_history_of_a_vfm() -> None:
    followed = Followed("here", "url", 1)
    for step in range(1000):
        followed.answered(NOON + step, told(step + 1))
    series = followed.history(NOON + 999, "minilm", "news")
    assert series.keys() == set(VFM_FIELDS)
    assert set(VFM_FIELDS) <= {field.name for field in dataclasses.fields(VfmFigures)}
    assert SPAN <= len(series["share"]) <= SPAN + 2
    assert series["p99_ms"][-1] == [0.0, pytest.approx(99)]
    assert (series["share"][0][0], series["rows_per_s"][0][1]) == (-SPAN, 10)
    assert followed.history(NOON, "minilm", "nobody") == {}


def test_lines_go_on_over_what_did_not_happen_and_not_over_silence() -> None:
    series: Series = {
        "p99_ms": [[-4.0, 5.0], [-3.0, None], [-2.0, 7.0], [-1.0, None], [0.0, 9.0]],
        "queue": [[-4.0, 0.0], [-3.0, 1.0], [-2.0, 1.0], [-1.0, None], [0.0, 0.0]],
    }
    assert line_of(series, "p99_ms", 2) == [[-4.0, 10.0], [-2.0, 14.0], [-1.0, None], [0.0, 18.0]]
    assert line_of(series, "queue") == series["queue"]
    assert line_of({}, "queue") == []


# ---- words ----


def test_words() -> None:
    assert [number(v) for v in (None, 0, 0.01, 0.5, 3, 42.25, 1234.5)] == [
        *("–", "0", "< 0.1", "0.5", "3", "42.2", "1,234"),
    ]
    assert [lasting(v) for v in (-1, 5, 600, 9000)] == ["0 s", "5 s", "10 min", "2 h"]
    assert (count(1, "engine"), count(2, "engine")) == ("1 engine", "2 engines")
    assert few(list("abc"), 2) == "a, b … (3 in all)"
    assert since(NOON, NOON + 12).endswith(" (12 s)")
    assert since(NOON, NOON + 3 * 86400).startswith("since 2023-11-1")


# ---- placement ----


def report(up: bool = True, **more: Any) -> dict[str, Any]:
    ports = {"http": 1, "grpc": 2, "metrics": 3, "health": 4}
    made = {"host": "10.0.0.1", "ports": ports, "memory": 4_000_000_000, "up": up, "pid": 7, "told": "x"}
    held = {"held": ["a", "b"], "serving": ["a", "b"], "current": ["a", "b"]}
    return {**made, **held, "problems": {}, "used": 1_000_000_000, **more}


def device(**more: Any) -> dict[str, Any]:
    """As `Controller.status` makes it; that it does is what the live test of the fleet's page sees."""
    made = {"node": "n", "lost_for": None, "drained": False, "planned": ["a", "b"], "holds": ["a", "b"]}
    return {**made, "report": report(), **more}


def fleet(**more: Any) -> dict[str, Any]:
    return {
        **{"name": "f", "claim": 1, "number": 1, "stopped": None, "problems": {}, "devices": {"cpu-0": device()}},
        **{"vfms": {"a": ["cpu-0"], "b": ["cpu-0"]}, "moving": [], "outdated": [], "missing": [], "settled": True},
        **{"door": {"address": "h:80", "led": 1, "up": True, "problem": ""}, **more},
    }


@pytest.mark.parametrize(
    ("change", "state"),
    [
        ({}, ("serves", "good")),
        ({"node": None}, ("no node", "idle")),
        ({"node": None, "lost_for": 7.0}, ("lost for 7 s", "bad")),
        ({"lost_for": 130.0}, ("silent for 2 min", "bad")),
        ({"drained": True}, ("draining", "warn")),
        ({"drained": True, "holds": []}, ("drained", "idle")),
        ({"report": None}, ("agent starts", "warn")),
        ({"report": report(up=False)}, ("starts", "warn")),
        ({"report": report(up=False), "planned": []}, ("empty", "idle")),
    ],
)
def test_devices_in_words(change: dict[str, Any], state: tuple[str, str]) -> None:
    assert placing.device_state(device(**change)) == state


@pytest.mark.parametrize(
    ("change", "states"),
    [
        ({}, {"a": "serves", "b": "serves"}),
        ({"planned": ["a"]}, {"a": "serves", "b": "leaves"}),
        ({"report": report(serving=["a"])}, {"a": "serves", "b": "comes"}),
        ({"report": report(current=["a"])}, {"a": "serves", "b": "serves; another version or configuration comes"}),
        ({"report": report(problems={"a": "no head"})}, {"a": "problem: no head", "b": "serves"}),
        ({"report": None}, {"a": "comes", "b": "comes"}),
    ],
)
def test_vfms_of_a_device_in_words(change: dict[str, Any], states: dict[str, str]) -> None:
    chips = placing.device_chips(device(**change))
    assert {vfm: chip.state for vfm, chip in chips.items()} == states
    assert all((chip.tone == "good") == (chip.state == "serves") for chip in chips.values())


def test_what_is_said_of_a_fleet() -> None:
    good = [line.text for line in placing.fleet_lines(fleet())]
    assert good == ["door h:80 (HTTP and gRPC): open, leads to 2 vFMs", "all is as planned"]
    wrong = fleet(
        vfms={"a": ["cpu-0"], "b": []},
        moving=["a", "c"],
        missing=["c"],
        settled=False,
        stopped="another controller claimed it",
        door={"address": "h:80", "led": 1, "up": False, "problem": "x"},
        problems={f"node-{n}": "is mute" for n in range(20)},
        devices={"cpu-0": device(report=report(problems={"a": "no head"}))},
    )
    text = "\n".join(line.text for line in placing.fleet_lines(wrong))
    for part in (
        "closed, leads to 1 of 2 vFMs",
        "served by nobody: b",
        "on their way: a",
        "without a place: c",
        "another controller claimed it",
        "node-0: is mute",
        "9 more",
    ):
        assert part in text
    assert "all is as planned" not in text


def test_the_picture_of_a_fleet() -> None:
    server = seen_twice("cpu-0", names=("a", "b"))
    told_of = fleet(devices={"cpu-0": device(planned=["a", "b", "c"]), "cpu-1": device(node=None, report=None)})
    picture = placing.placement(Snapshot(NOON, 1, (server,), FleetView("f", told_of)))
    first, second = picture.devices
    assert (first.name, first.used, first.memory) == ("cpu-0", 1_000_000_000, 4_000_000_000)
    assert [chip.vfm for chip in first.fms[0].chips] == ["a", "b"]
    assert [(chip.vfm, chip.state) for chip in first.loose] == [("c", "comes")]
    assert (second.state, second.fms) == ("no node", ())
    mute = Snapshot(NOON + 9, 1, (server,), FleetView("f", told_of, Silence(NOON, "it has died")))
    assert "it has died" in [line.text for line in placing.placement(mute).lines]
    assert placing.placement(Snapshot(NOON, 1, (), FleetView("f", None, Silence(NOON, "no")))).devices == ()


def test_many_vfms_are_counted_and_those_in_trouble_are_drawn() -> None:
    names = tuple(f"vfm-{n:04}" for n in range(500))
    (box,) = placing.placement(Snapshot(NOON, 1, (seen_twice(names=names),))).devices
    (fm,) = box.fms
    assert len(fm.chips) == placing.MOST_CHIPS
    assert fm.more == 500 - placing.MOST_CHIPS
    assert {chip.state for chip in fm.chips} == {"refusing"}


# ---- the watch ----


def wait_until(look: Callable[[], bool]) -> None:
    clock = threading.Event()
    for _ in range(1000):
        if look():
            return
        clock.wait(0.01)
    raise AssertionError("not within 10 s")


def test_the_watch_follows_a_fleet_through_a_dead_controller() -> None:
    state: dict[str, Any] = {"told": fleet(), "steps": 0}
    asked: list[str] = []

    def status() -> dict[str, Any]:
        if state["told"] is None:
            raise Unavailable("the controller has died")
        return dict(state["told"])

    def scrape(url: str) -> dict[str, FmScrape]:
        asked.append(url)
        state["steps"] += 1
        return told(state["steps"], ("a", "b"))

    with Watch(0.01, scrape=scrape) as watch:
        watch.fleet("f", status)
        wait_until(lambda: headline(watch.snapshot().servers).rows_per_s is not None)
        assert set(asked) == {"http://10.0.0.1:3/metrics"}
        state["told"] = None
        wait_until(lambda: (now := watch.snapshot().fleet) is not None and now.silent is not None)
        now = watch.snapshot()
        assert now.fleet is not None
        assert now.fleet.told is not None, "what it said last"
        before = len(asked)
        wait_until(lambda: len(asked) > before + 2)
        state["told"] = fleet(devices={"cpu-1": device()})
        wait_until(lambda: [server.name for server in watch.snapshot().servers] == ["cpu-1"])
        assert watch.snapshot().fleet == FleetView("f", state["told"])
        assert watch.history("cpu-0", "minilm") == {}


def test_what_goes_wrong_in_a_look_is_shown() -> None:
    def scrape(url: str) -> dict[str, FmScrape]:
        raise RuntimeError("a mistake of ours")

    with Watch(0.01, scrape=scrape) as watch:
        watch.servers({"here": "http://here/metrics"})
        wait_until(lambda: watch.snapshot().servers[0].silent is not None)
        silent = watch.snapshot().servers[0].silent
        assert silent is not None
        assert silent.why == "RuntimeError: a mistake of ours"


def test_servers_of_a_fleet() -> None:
    devices = {"up": device(), "starts": device(report=report(up=False)), "none": device(report=None)}
    devices["empty"] = device(report=report(up=False, pid=0))
    assert metrics_of(fleet(devices=devices)).keys() == {"up", "starts"}
    assert metrics_of(fleet()) == {"cpu-0": "http://10.0.0.1:3/metrics"}


# ---- the table ----


def test_only_rows_that_changed_are_told() -> None:
    pytest.importorskip("nicegui", reason="needs the extra 'dashboard'")
    from fmplex_tools.dashboard.table import cells, changes

    before = {row.id: cells(row) for row in rows([seen_twice()])}
    assert changes(before, before) == {}
    assert changes({}, before) == {"add": list(before.values())}
    now = {key: dict(row) for key, row in before.items() if row["vfm"] != "idle"}
    now["here/minilm/news"]["queue"] = 99
    assert changes(before, now) == {"update": [now["here/minilm/news"]], "remove": [{"id": "here/minilm/idle"}]}
    silent = Followed("here", "url", 1)
    silent.answered(NOON, told(1))
    silent.failed(NOON, "refused")
    assert {cells(row)["rows_per_s"] for row in rows([silent.view(NOON)])} == {None}, "unknown is no zero"


def test_names_are_no_html() -> None:
    pytest.importorskip("nicegui", reason="needs the extra 'dashboard'")
    from fmplex_tools.dashboard.boxes import placement_html

    name = "<img src=x onerror=alert(1)>&'/.."
    html = placement_html(placing.placement(Snapshot(NOON, 1, (seen_twice("<b>", names=("idle", name)),))))
    assert "<img" not in html
    assert "<b>" not in html
    assert "%3Cimg%20src%3Dx" in html


# ---- the command ----


def test_what_is_wrong_with_the_command() -> None:
    (port,) = free_ports(1)
    options: dict[str, Any] = {"address": "auto", "host": "127.0.0.1", "port": port, "interval": 1.0}
    with pytest.raises(Unavailable, match=r"no metrics at http://127.0.0.1:1/metrics"):
        dashboard(metrics=["http://127.0.0.1:1/metrics"], fleet=None, **options)
    with pytest.raises(InvalidInput, match=r"'127.0.0.1:8002' is no address of metrics"):
        dashboard(metrics=["127.0.0.1:8002"], fleet=None, **options)
    with pytest.raises(InvalidInput, match="leave out --metrics"):
        dashboard(metrics=["http://127.0.0.1:1/metrics"], fleet="f", **options)
    with pytest.raises(InvalidInput, match=rf"port {port} on 192\.0\.2\.1 cannot be used"):
        dashboard(metrics=None, fleet=None, **{**options, "host": "192.0.2.1"})
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        with pytest.raises(InvalidInput, match=rf"port {port} on 127\.0\.0\.1 cannot be used \(Address already in use"):
            dashboard(metrics=None, fleet=None, **options)


def test_without_nicegui_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "fmplex_tools.dashboard.serving", None)
    (port,) = free_ports(1)
    with pytest.raises(NotFound, match=r"pip install 'fmplex\[dashboard\]'"):
        dashboard(metrics=None, fleet=None, address="auto", host="127.0.0.1", port=port, interval=1.0)
