"""Replicas that follow what comes in, FMs that sleep, and what there is no room for: by an argument for a clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmplex_backend.errors import InvalidInput
from fmplex_tools.fleet.elastic import DOWN, ROOM, UP, Elastic, Load, Wish, fitted, scaled
from fmplex_tools.fleet.placing import by_vfm, plan_on, sufficient
from fmplex_tools.planner.fleet_file import Fleet, parse_fleet
from fmplex_tools.planner.placement import PlanFile

TEXT = """
devices: {cpu: {count: 4, memory: 3 GB}}
fms:
  busy: {memory: 300 MB, cost: {cpu: {alpha: 0.005, beta: 0.0001}}}
  rare: {memory: 300 MB, cost: {cpu: {alpha: 0.005, beta: 0.0001}}, sleep_after: 100}
vfms:
  hot: {fm: busy, rate: 10, p99_ms: 500, most_replicas: 3}
  pair: {fm: busy, count: 2, rate: 10, p99_ms: 500, replicas: 2, most_replicas: 4}
  still: {fm: busy, rate: 1, p99_ms: 500}
  seldom: {fm: rare, rate: 1, p99_ms: 500}
"""
FLEET = parse_fleet(TEXT, "here")
NOTHING = Wish()


def after(loads: dict[str, Load], seconds: float, wish: Wish = NOTHING) -> Wish:
    """What is to be once this has come in for so long, looked at each second."""
    elastic = Elastic(FLEET, 0.0)
    for now in range(int(seconds) + 1):
        wish = elastic.step(wish, loads, (), float(now))
    return wish


def test_what_comes_in_makes_replicas_after_a_while() -> None:
    assert after({"hot": Load(11)}, UP - 1).replicas == {}
    assert after({"hot": Load(11)}, UP).replicas == {"hot": 2}
    assert after({"hot": Load(10)}, 100).replicas == {}, "what a replica carries is no reason"


def test_as_many_as_carry_it_with_room_to_spare_and_never_more_than_the_most() -> None:
    assert after({"hot": Load(22)}, UP).replicas == {"hot": 3}
    assert after({"hot": Load(1000)}, 100).replicas == {"hot": 3}
    assert after({"pair-1": Load(14)}, UP).replicas == {"pair-1": 4}, "a replica of two carries half of the rate"


def test_late_answers_are_a_reason_where_there_is_work() -> None:
    assert after({"hot": Load(6, p99=0.6)}, UP).replicas == {"hot": 2}
    assert after({"hot": Load(4, p99=0.6)}, 100).replicas == {}


def test_replicas_go_one_by_one_when_little_comes_in() -> None:
    three = Wish({"hot": 3})
    assert after({}, DOWN - 1, three).replicas == {"hot": 3}
    assert after({}, DOWN, three).replicas == {"hot": 2}
    assert after({}, 3 * DOWN, three).replicas == {}
    assert after({"hot": Load(20 * ROOM)}, 10 * DOWN, three).replicas == {"hot": 3}


@given(st.floats(0, 100, allow_nan=False), st.integers(1, 3))
def test_an_even_load_comes_to_rest(rows: float, have: int) -> None:
    """No load makes the number of replicas go up and down for ever."""
    elastic, wish, counts = Elastic(FLEET, 0.0), Wish({"hot": have} if have > 1 else {}), []
    for now in range(1000):
        wish = elastic.step(wish, {"hot": Load(rows)}, (), float(now))
        counts.append(wish.replicas.get("hot", 1))
    assert len(set(counts[500:])) == 1
    assert counts[-1] == 3 or rows <= counts[-1] * 10


def test_an_fm_that_nobody_calls_sleeps_until_somebody_waits() -> None:
    elastic = Elastic(FLEET, 0.0)
    assert not elastic.step(Wish(), {}, (), 100.0).asleep
    assert elastic.step(Wish(), {"still": Load(1)}, (), 101.0).asleep == {"rare"}
    asleep = Wish(asleep=frozenset({"rare"}))
    assert elastic.step(asleep, {}, ("hot",), 500.0).asleep == {"rare"}
    assert not elastic.step(asleep, {}, ("seldom",), 501.0).asleep
    assert not elastic.step(Wish(), {}, (), 600.0).asleep, "it was asked a short while ago"
    assert elastic.step(Wish(), {}, (), 602.0).asleep == {"rare"}


def test_a_bundle_sleeps_and_wakes_with_its_vfms() -> None:
    vfms = {**FLEET.vfms, "rarely": FLEET.vfms["seldom"]}
    fleet = FLEET.model_copy(update={"vfms": vfms, "bundles": {"both": ["seldom", "rarely"]}})
    asleep = Wish(asleep=frozenset({"rare"}))
    assert Elastic(fleet, 0.0).step(asleep, {}, (), 500.0).asleep == {"rare"}
    assert not Elastic(fleet, 0.0).step(asleep, {}, ("both",), 500.0).asleep
    assert scaled(fleet, Wish()).bundles == fleet.bundles
    assert not scaled(fleet, asleep).bundles


def test_what_is_asked_stays_awake() -> None:
    elastic = Elastic(FLEET, 0.0)
    for now in range(0, 1000, 50):
        assert not elastic.step(Wish(), {"seldom": Load(0.1)}, (), float(now)).asleep


def test_what_is_on_its_way_does_not_fall_asleep() -> None:
    elastic = Elastic(FLEET, 0.0)
    assert not elastic.step(Wish(), {}, (), 500.0, moving={"seldom"}).asleep
    assert not elastic.step(Wish(), {}, (), 600.0).asleep
    assert elastic.step(Wish(), {}, (), 601.0).asleep == {"rare"}


def test_the_fleet_grows_with_its_load() -> None:
    made = scaled(FLEET, Wish({"pair-1": 3, "hot": 2}, frozenset({"rare"})))
    assert set(made.vfms) == {"hot", "pair-0", "pair-1", "still"}
    assert (made.vfms["hot"].replicas, made.vfms["hot"].rate) == (2, 20)
    assert (made.vfms["pair-1"].replicas, made.vfms["pair-1"].rate) == (3, 15)
    assert (made.vfms["pair-0"].replicas, made.vfms["pair-0"].rate) == (2, 10)


def placed(fleet: Fleet, wish: Wish, devices: int, before: PlanFile | None = None) -> tuple[PlanFile, Wish]:
    names = [f"cpu-{number}" for number in range(devices)]
    return fitted(fleet, wish, lambda one: plan_on(one, names, before))


def test_what_has_no_room_is_not_forced() -> None:
    plan, got = placed(FLEET, Wish({"hot": 3}), devices=4)
    assert len(by_vfm(plan)["hot"]) == got.replicas["hot"] == 3
    plan, got = placed(FLEET, Wish({"hot": 3, "pair-0": 4}), devices=2, before=plan)
    assert not plan.missing
    assert {vfm: len(on) for vfm, on in by_vfm(plan).items()}["hot"] == got.replicas["hot"] == 2
    assert got.replicas == {"hot": 2}, "the pair has its two, and no more"


def test_what_load_asks_for_never_costs_another_its_place() -> None:
    full = TEXT.replace("300 MB", "2600 MB")
    fleet = parse_fleet(full.replace("count: 4", "count: 3"), "here")
    plan, _ = placed(fleet, Wish({"hot": 3}), devices=3)
    assert not plan.missing


def test_what_the_file_does_not_allow_any_more_is_forgotten() -> None:
    _, got = placed(FLEET, Wish({"hot": 9, "still": 2, "gone": 5}, frozenset({"busy", "gone"})), devices=4)
    assert got == Wish({"hot": 3})


def test_only_sleeping_fms_need_no_device() -> None:
    only = parse_fleet(TEXT.replace("fm: busy", "fm: rare").replace("busy:", "other:"), "here")
    plan, _ = placed(only, Wish(asleep=frozenset({"rare"})), devices=2)
    assert plan == PlanFile(devices={}, missing=[])


def test_as_few_devices_as_will_do_those_in_use_first() -> None:
    few = parse_fleet(TEXT.replace("replicas: 2, ", ""), "here")
    devices = [f"cpu-{number}" for number in range(4)]
    before = PlanFile(devices={"cpu-2": {"busy": ["hot"]}})
    assert sufficient(few, devices, before) == ["cpu-2"]
    assert len(sufficient(scaled(few, Wish({"hot": 3})), devices, before)) == 3


@pytest.mark.parametrize(
    ("vfm", "says"),
    [
        ("{fm: busy, rate: 1, p99_ms: 5, replicas: 3, most_replicas: 2}", "most_replicas 2 is less than replicas 3"),
        ("{fm: busy, rate: 0, p99_ms: 5, most_replicas: 2}", "most_replicas needs a rate above 0"),
    ],
)
def test_bounds_that_cannot_be_are_refused(vfm: str, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        parse_fleet(TEXT + f"  wrong: {vfm}\n", "here")
