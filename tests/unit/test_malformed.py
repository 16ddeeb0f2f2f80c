"""Malformed requests: the same seed makes the same ones, and nearly all of them are not the good one."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

import pytest

from fmplex_tools.bench.faults.footprint import Footprint, growth
from fmplex_tools.bench.faults.malformed_grpc import GRPC_KINDS, good_request
from fmplex_tools.bench.faults.malformed_http import HTTP_KINDS, good_body, path_of, post

GOOD = {post(path_of("vfm"), json.dumps(good_body("good film")).encode())}
GOOD.add(good_request("vfm", "good film").SerializeToString())
KINDS = [(kind, make) for kind, make in (*HTTP_KINDS.items(), *GRPC_KINDS.items()) if not kind.startswith("too ")]
TIMES = 200


@pytest.mark.parametrize(("kind", "make"), KINDS, ids=[kind for kind, _ in KINDS])
def test_a_kind(kind: str, make: Callable[[random.Random, str, str], bytes]) -> None:
    first, second = ([make(chance, "vfm", "good film") for _ in range(TIMES)] for chance in map(random.Random, (1, 1)))
    assert first == second
    assert sum(request in GOOD for request in first) < TIMES / 4
    assert len(set(first)) >= 4


def test_what_is_left_behind_is_told_by_who_keeps_it() -> None:
    server, host = "tritonserver 1", "triton_python_backend_stub 2"
    before = Footprint({server: 10, host: 20, "python3 3": 1, "python3 4": 2}, 5, 6, 1)
    after = Footprint({server: 10, host: 30_020, "python3 3": 1, "python3 4": 9}, 8, 6, 1)
    figures = growth("part", before, after, 100)
    goods = [(figure.name, figure.good) for figure in figures if figure.goal]
    assert goods == [
        ("… for each request", True),
        ("… for each request", False),
        ("threads", False),
        ("open files", True),
        ("shared memory regions", True),
    ]
    assert [figure.name for figure in figures if not figure.goal] == [
        "memory of tritonserver",
        "memory of host",
        "memory of engines",
    ]
