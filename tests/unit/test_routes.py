"""The four rules of `fmplex_backend.host.routes`, with a fake clock."""

from __future__ import annotations

from typing import Any, cast

import pytest

from fmplex_backend.errors import Refused, Unavailable
from fmplex_backend.host.routes import HANDOVER, Blocked, Claim, Route, RouteTable, Serving
from fmplex_backend.repository.config import Policy


def serving(name: str) -> Serving:
    """Somebody's answers; what a generation is does not matter here."""
    return Serving(cast(Any, f"generation of {name}"), Policy())


def claim(name: str, port: int, refusal: Refused | None = None, *, loading: bool = False) -> Claim:
    return Claim(name, port, None if loading or refusal else serving(name), refusal)


def who(route: Route | None) -> str:
    """``a`` where a's generation serves, else the error's code, or ``-`` for no route."""
    if route is None:
        return "-"
    return str(route.generation).rsplit(maxsplit=1)[-1] if isinstance(route, Serving) else route.error.code


@pytest.fixture
def table() -> RouteTable:
    return RouteTable()


def test_rule_1_a_vfm_claims_its_port(table: RouteTable) -> None:
    routes = table.build([claim("a", 1), claim("b", 7)], 0)
    assert {port: who(route) for port, route in routes.items()} == {1: "a", 7: "b"}


def test_rule_2_two_claims_are_both_refused(table: RouteTable) -> None:
    table.build([claim("a", 0)], 0)
    route = table.build([claim("a", 0), claim("b", 0), claim("c", 1)], 1)[0]
    assert isinstance(route, Blocked)
    assert isinstance(route.error, Refused)
    assert "'a' and 'b' both map port 0" in str(route.error)
    assert "give one port 2" in str(route.error), "the lowest that nobody maps"


def test_rule_2_holds_for_a_refused_and_a_loading_claimant(table: RouteTable) -> None:
    for other in (claim("b", 0, Refused("broken")), claim("b", 0, loading=True)):
        assert who(table.build([claim("a", 0), other], 0)[0]) == "NOT_FOUND"


def test_rule_2_heals(table: RouteTable) -> None:
    table.build([claim("a", 0)], 0)
    table.build([claim("a", 0), claim("b", 0)], 1)
    assert who(table.build([claim("a", 0)], 1.1)[0]) == "a", "it was a's before"


def test_rule_3_a_port_that_changes_hands_waits(table: RouteTable) -> None:
    table.build([claim("a", 0)], 10)
    for now, wanted in ((10.1, "UNAVAILABLE"), (10 + HANDOVER - 0.01, "UNAVAILABLE"), (10 + HANDOVER, "b")):
        assert who(table.build([claim("b", 0)], now)[0]) == wanted
    route = table.build([claim("a", 0)], 10 + HANDOVER)[0]
    assert isinstance(route, Blocked)
    assert isinstance(route.error, Unavailable)
    assert "passes from 'b' to 'a'" in str(route.error)


def test_rule_3_counts_from_when_it_was_last_served(table: RouteTable) -> None:
    table.build([claim("a", 0)], 0)
    table.build([claim("a", 0)], 50)
    assert who(table.build([claim("b", 0)], 50.5)[0]) == "UNAVAILABLE"


def test_rule_3_a_port_left_long_ago_is_free(table: RouteTable) -> None:
    table.build([claim("a", 0)], 0)
    table.build([], HANDOVER)
    assert who(table.build([claim("b", 0)], HANDOVER + 0.1)[0]) == "b"


def test_rule_4_a_vfm_that_moves_answers_on_both(table: RouteTable) -> None:
    table.build([claim("a", 0)], 0)
    for now, old in ((0.5, "a"), (HANDOVER - 0.01, "a"), (HANDOVER, "-")):
        routes = table.build([claim("a", 5)], now)
        assert (who(routes[5]), who(routes.get(0))) == ("a", old)


def test_rule_4_not_where_somebody_else_claims_the_old_port(table: RouteTable) -> None:
    table.build([claim("a", 0)], 0)
    routes = table.build([claim("a", 5), claim("b", 0)], 0.5)
    assert (who(routes[5]), who(routes[0])) == ("a", "UNAVAILABLE")


def test_a_removed_vfm_has_no_route(table: RouteTable) -> None:
    table.build([claim("a", 0)], 0)
    assert table.build([], 0.1) == {}


def test_refusal_and_loading_are_told(table: RouteTable) -> None:
    routes = table.build([claim("a", 0, Refused("vFM 'a': broken")), claim("b", 1, loading=True)], 0)
    assert str(cast(Blocked, routes[0]).error) == "vFM 'a': broken"
    assert "vFM 'b' is loading; retry" in str(cast(Blocked, routes[1]).error)
    assert who(routes[1]) == "UNAVAILABLE"
