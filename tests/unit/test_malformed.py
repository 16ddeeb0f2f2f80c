"""Malformed requests: the same seed makes the same ones, and nearly all of them are not the good one."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

import pytest

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
