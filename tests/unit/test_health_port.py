"""The port that tells load balancers whether a server serves."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

import pytest

from fmplex_backend.errors import InvalidInput
from fmplex_tools.server.health_port import PATH, HealthPort
from fmplex_tools.server.process import free_ports

HOST = "127.0.0.1"


def told(port: int, path: str = PATH) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())["error"]


def test_it_says_whether_the_server_serves_and_why_not() -> None:
    wrong: list[str | None] = ["it is starting"]
    [port] = free_ports(1)
    with HealthPort(HOST, port, lambda: wrong[0]):
        assert told(port) == (503, "it is starting")
        wrong[0] = None
        assert told(port) == (200, "")
        assert told(port, "/v2/models") == (404, f"ask {PATH}")
        with pytest.raises(InvalidInput, match=f"port {port} on {HOST} cannot be used"):
            HealthPort(HOST, port, lambda: None)
    with pytest.raises(urllib.error.URLError):
        told(port)
