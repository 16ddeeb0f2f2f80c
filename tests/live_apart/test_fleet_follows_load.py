"""A fleet that follows its load: replicas come and go, an FM that nobody calls sleeps, and no client notices."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.fleets import Fleet, Load, values
from support.live import wait_for
from support.recipes import RECIPES, write_vfm
from support.served import serving

from fmplex_client import Client, Retry
from fmplex_tools.fleet.local import LocalNodes
from fmplex_tools.planner.fleet_file import read_fleet

pytest.importorskip("ray", reason="needs the extra 'fleet'")
pytestmark = pytest.mark.live

ONCE = Retry(max_attempts=1)
"""A client that never asks again, as those that are not ours."""
FLEET = """
devices: {cpu: {count: 2, memory: 3 GB}}
fms:
  tiny: {memory: 300 MB, cost: {cpu: {alpha: 0.005, beta: 0.0001}}, sleep_after: 15}
vfms:
VFMS
run: {name: NAME, repository: REPOSITORY, store: STORE, door: {port: PORT, admin: ADMIN}}
"""


@pytest.fixture
def fleet(tmp_path: Path, small_repository: Path, tiny_backbone: Path) -> Iterator[Fleet]:
    for port, name in enumerate(("hot", "still"), start=10):
        write_vfm(small_repository, name, port, RECIPES["lora_qv_4"], tiny_backbone, fm="tiny", seed=port)
    made = Fleet("followed", FLEET, tmp_path, small_repository)
    made.forget()
    made.write({"hot": ", most_replicas: 2", "still": ""})
    yield made
    made.forget()


def test_replicas_follow_the_load_and_what_nobody_calls_sleeps(fleet: Fleet) -> None:
    with serving(fleet.repository) as served:
        served.wait_ready()
        with Client(served.http) as client:
            expected = {vfm: values(client, vfm) for vfm in ("hot", "still")}
    with LocalNodes(read_fleet(fleet.file), 2) as nodes:
        fleet.address = nodes.address
        try:
            told = fleet.call("up", str(fleet.file), "--wait", "100")
            assert "leads to 2 vFMs" in told
            grows(fleet, Load(fleet.door, {"hot": expected["hot"]}))
            sleeps_and_wakes(fleet, expected)
        finally:
            fleet.call("down", "--fleet", fleet.name)


def grows(fleet: Fleet, load: Load) -> None:
    with load.going_on():
        wait_for(lambda: len(fleet.status()["vfms"]["hot"]) == 2, "what is asked more has more replicas")
        told = fleet.wait_settled("there are two of it")
        assert len(told["vfms"]["still"]) == 1, "what is not stays as it is"
        before = load.answered
        wait_for(lambda: load.answered > before + 20, "requests are answered")
    assert not load.wrong


def sleeps_and_wakes(fleet: Fleet, expected: dict[str, np.ndarray]) -> None:
    wait_for(lambda: fleet.status()["asleep"] == ["tiny"], "it sleeps")
    told = fleet.wait_settled("it is nowhere")
    assert told["vfms"] == {"hot": [], "still": []}
    assert not any(device["planned"] or device["holds"] for device in told["devices"].values())
    begun = time.monotonic()
    with Client(fleet.door, "grpc", timeout=60, retry=ONCE) as client:
        assert np.allclose(values(client, "still"), expected["still"], atol=1e-4)
    print(f"the first request of an FM that slept took {time.monotonic() - begun:.1f} s")
    assert fleet.status()["asleep"] == []
    with Client(fleet.door, timeout=60, retry=ONCE) as client:
        assert np.allclose(values(client, "hot"), expected["hot"], atol=1e-4)
