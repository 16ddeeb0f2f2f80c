"""Bringing a fleet to its plan: nothing is taken away that a door may still lead to, whatever is late."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from fmplex_tools.fleet.bind import Bound, Node, bind, offers_of, unused
from fmplex_tools.fleet.reconcile import GRACE, Next, Seen, reconcile

DEVICES = ("a", "b", "c")
VFMS = ("one", "two", "three")
BUNDLES = {"both": ("one", "two")}
LONG_AGO = 1e9


def next_of(
    wanted: Mapping[str, set[str]],
    serving: Mapping[str, set[str]],
    *,
    alive: tuple[str, ...] = DEVICES,
    unled: float = LONG_AGO,
) -> Next:
    present = {device: serving.get(device, set()) for device in DEVICES}
    return reconcile(wanted, Seen(alive, present, serving), lambda vfm, device: unled)


def test_a_vfm_serves_at_its_new_place_before_it_leaves_the_old_one() -> None:
    moving = next_of({"one": {"b"}}, {"a": {"one"}})
    assert moving.leads == {"one": ("a",)}
    assert moving.holds == {"a": {"one"}, "b": {"one"}, "c": set()}
    assert moving.moving == {"one"}
    both = next_of({"one": {"b"}}, {"a": {"one"}, "b": {"one"}}, unled=GRACE / 2)
    assert both.leads == {"one": ("b",)}
    assert both.holds["a"] == {"one"}, "requests may be on their way to it"
    done = next_of({"one": {"b"}}, {"a": {"one"}, "b": {"one"}})
    assert done.holds == {"a": set(), "b": {"one"}, "c": set()}
    assert not done.moving


def test_a_device_that_is_down_is_not_led_to() -> None:
    made = next_of({"one": {"a", "b"}}, {"a": {"one"}, "b": {"one"}}, alive=("b", "c"))
    assert made.leads == {"one": ("b",)}
    assert made.holds["a"] == {"one"}, "it is still to be there when its server is back"


def test_a_vfm_that_is_not_wanted_is_not_led_to_and_goes_after_a_while() -> None:
    assert next_of({}, {"a": {"one"}}, unled=0.0).leads == {}
    assert next_of({}, {"a": {"one"}}, unled=0.0).holds["a"] == {"one"}
    assert next_of({}, {"a": {"one"}}).holds["a"] == set()


def test_a_vfm_without_a_place_stays_where_it_is() -> None:
    made = next_of({"one": set()}, {"a": {"one"}})
    assert made.leads == {"one": ("a",)}
    assert made.holds["a"] == {"one"}


def test_the_vfms_of_a_bundle_stay_as_long_as_it_does() -> None:
    present = {"a": {"one", "two", "both"}, "b": {"one", "two", "both"}}
    serving = {"a": {"one", "two", "both"}, "b": {"one", "two"}}
    wanted = {vfm: {"b"} for vfm in ("one", "two", "both")}

    def made(**more: Any) -> Next:
        return reconcile(wanted, Seen(("a", "b"), present, serving), lambda vfm, device: LONG_AGO, **more)

    assert made().holds["a"] == {"both"}
    assert made(bundles=BUNDLES).holds["a"] == {"both", "one", "two"}
    assert made(bundles=BUNDLES).leads == {"one": ("b",), "two": ("b",), "both": ("a",)}


@st.composite
def places(draw: Any) -> dict[str, set[str]]:
    """A plan; where there is a bundle, its vFMs are where it is."""
    plan = draw(st.dictionaries(st.sampled_from(VFMS), st.sets(st.sampled_from(DEVICES), min_size=1, max_size=2)))
    if "one" in plan and draw(st.booleans()):
        plan |= {"two": plan["one"], "both": plan["one"]}
    return plan


@settings(max_examples=200)
@given(
    plans=st.lists(places(), min_size=2, max_size=5),
    lags=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 4), st.integers(1, 20)), min_size=2, max_size=5),
)
def test_no_request_is_led_to_where_nobody_answers(
    plans: list[dict[str, set[str]]], lags: list[tuple[int, int, int]]
) -> None:
    """Devices serve what they are told some steps later, the door follows some steps later, plans change meanwhile."""
    told: dict[str, set[str]] = {device: set() for device in DEVICES}
    history: list[dict[str, set[str]]] = []
    leads: list[dict[str, tuple[str, ...]]] = [{}]
    led_last: dict[tuple[str, str], int] = {}
    step_seconds, step = GRACE / 4, 0
    for plan, (slow, door_slow, steps) in zip(plans, lags, strict=False):
        for _ in range(steps):
            history.append({device: set(vfms) for device, vfms in told.items()})
            # A vFM serves once it has been there for some steps without a break.
            recent = history[-1 - slow :] if slow < len(history) else [{device: set() for device in DEVICES}]
            serving = {device: set.intersection(*(past[device] for past in recent)) for device in DEVICES}
            for own in serving.values():
                own -= {bundle for bundle, members in BUNDLES.items() if not own >= set(members)}
            door = leads[max(0, len(leads) - 1 - door_slow)]
            for on in leads[max(0, len(leads) - 1 - door_slow) :]:
                led_last |= {(vfm, device): step for vfm, devices in on.items() for device in devices}
            for vfm, devices in door.items():
                needed = {vfm, *BUNDLES.get(vfm, ())}
                assert all(needed <= told[device] for device in devices), "the door leads to where it was taken away"
            unled = {
                (vfm, device): (step - led_last.get((vfm, device), -1000)) * step_seconds
                for vfm in (*VFMS, *BUNDLES)
                for device in DEVICES
            }
            seen = Seen(DEVICES, {device: told[device] for device in DEVICES}, serving)
            made = reconcile(
                plan,
                seen,
                lambda vfm, device, unled=unled: unled[vfm, device],  # type: ignore[misc]
                bundles=BUNDLES,
            )
            for vfm in plan:
                if any(vfm in serving[device] for device in DEVICES):
                    assert made.leads[vfm], "somebody serves it, so the door leads there"
            told = {device: made.holds.get(device, set()) for device in DEVICES}
            leads.append(made.leads)
            step += 1


# ---- which node has which device ----


def node(name: str, **offers: int) -> Node:
    return Node(f"id-{name}", name, "127.0.0.1", offers)


def test_a_node_that_comes_takes_the_place_of_one_that_is_gone() -> None:
    before = bind({"cpu": 3}, [node("x", cpu=1), node("y", cpu=1)], {})
    assert before == {"cpu-0": Bound("id-x", 0), "cpu-1": Bound("id-y", 0)}
    after = bind({"cpu": 3}, [node("y", cpu=1), node("z", cpu=1)], before)
    assert after == {"cpu-0": Bound("id-z", 0), "cpu-1": Bound("id-y", 0)}


@given(
    offered=st.lists(st.dictionaries(st.sampled_from(["cpu", "gpu", "odd"]), st.integers(1, 3)), max_size=5),
    gone=st.sets(st.integers(0, 4)),
    counts=st.dictionaries(st.sampled_from(["cpu", "gpu"]), st.integers(1, 4), min_size=1),
)
def test_devices_stay_where_they_are(offered: list[dict[str, int]], gone: set[int], counts: dict[str, int]) -> None:
    nodes = [Node(str(number), str(number), "", offers) for number, offers in enumerate(offered)]
    first = bind(counts, nodes, {})
    left = [one for number, one in enumerate(nodes) if number not in gone]
    second = bind(counts, left, first)
    alive = {one.id for one in left}
    for name, at in first.items():
        if at.node in alive:
            assert second[name] == at
    for made in (first, second):
        taken = {(name.partition("-")[0], at) for name, at in made.items()}
        assert len(taken) == len(made), "no two of a kind share a place"
    for kind, count in counts.items():
        there = sum(one.offers.get(kind, 0) for one in left)
        assert sum(name.startswith(f"{kind}-") for name in second) == min(count, there)


def test_what_is_offered_in_vain_is_told() -> None:
    assert offers_of({"CPU": 2.0, "fmplex:cpu": 1.0, "memory": 7.0}) == {"cpu": 1}
    told = unused({"cpu": 1}, [node("x", cpu=1), node("y", cpu=1), node("z", tpu=1)])
    assert told["cpu"] == "2 of them are offered; the fleet file says 1"
    assert told["z"] == "offers 'tpu', which the fleet file does not name"
    assert "--resources" in next(iter(unused({"cpu": 1}, [node("x")]).values()))
    assert not unused({"cpu": 1}, [node("head"), node("x", cpu=1)]), "a node without devices may be a head"
