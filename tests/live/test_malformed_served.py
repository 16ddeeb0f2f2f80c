"""Malformed requests of every kind to the real server, with good ones between them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from rich.progress import Progress
from support.live import FM, LiveServer
from support.recipes import RECIPES

from fmplex_tools.bench.fair.arena import Arena
from fmplex_tools.bench.faults.malformed import LEFT_OUT, MalformedPlan, attack
from fmplex_tools.bench.faults.malformed_grpc import GRPC_KINDS
from fmplex_tools.bench.faults.malformed_http import HTTP_KINDS
from fmplex_tools.server.process import ServerOptions

pytestmark = pytest.mark.live

REQUESTS = 900
VFMS = ("bare_two", "lora_qv_4", "dora_qv_8")


def test_malformed_requests(server: LiveServer) -> None:
    http, grpc, metrics = (int(address.rsplit(":", 1)[1]) for address in (server.http, server.grpc, server.metrics))
    made = Arena(ServerOptions(server.repository, http, grpc, metrics), FM)
    labels = {name: [f"L{number}" for number in range(RECIPES[name].outputs)] for name in VFMS}
    plan = MalformedPlan(source=Path(server.repository), fm=FM, requests=REQUESTS, clients=3, rest=0.1)
    with Progress(disable=True) as progress:
        outcome = asyncio.run(attack(plan, made, labels, progress, progress.add_task("malformed")))
    print(outcome.details["ends"])
    missed = [figure.name for figure in outcome.figures if figure.good is False and figure.goal == "0"]
    assert not missed, outcome.details
    kinds = {f"HTTP, {kind}" for kind in HTTP_KINDS} | {f"gRPC, {kind}" for kind in GRPC_KINDS}
    assert kinds - LEFT_OUT.keys() <= outcome.details["ends"].keys()
