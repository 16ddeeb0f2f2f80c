"""The real controller over machines that come when it asks for them: as many as it needs, for as long as it does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.live import wait_for
from support.machines import Machines

from fmplex_tools.fleet import controller as module
from fmplex_tools.fleet import elastic
from fmplex_tools.fleet.claims import Claims
from fmplex_tools.fleet.content import Contents, FMContent, VfmContent
from fmplex_tools.fleet.controller import Controller
from fmplex_tools.fleet.elastic import Load
from fmplex_tools.planner.fleet_file import parse_fleet

FLEET = """
devices: {cpu: {count: 3, memory: 3 GB}}
fms:
  tiny: {memory: 300 MB, cost: {cpu: {alpha: 0.005, beta: 0.0001}}, sleep_after: 2}
vfms:
  hot: {fm: tiny, rate: 10, p99_ms: 900, most_replicas: 3}
  still: {fm: tiny, rate: 1, p99_ms: 900}
run: {name: f, repository: nowhere, store: STORE, lost_after: 60, autoscale: true}
"""

VFM = VfmContent(fm="tiny", config="", versions={"1": "0"})
CONTENTS = Contents(fms={"tiny": FMContent(config="")}, vfms={"hot": VFM, "still": VFM})


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes a minute takes a moment."""
    monkeypatch.setattr(module, "STEP", 0.02)
    monkeypatch.setattr(module, "_ASK_AGAIN", 0.05)
    monkeypatch.setattr(elastic, "UP", 0.2)
    monkeypatch.setattr(elastic, "DOWN", 0.4)


@contextmanager
def running(folder: Path, cluster: Machines) -> Iterator[Controller]:
    fleet = parse_fleet(FLEET.replace("STORE", str(folder)), "here")
    controller = Controller(cluster, Claims(str(folder), "f"), fleet, 60.0)
    try:
        controller.apply(fleet, CONTENTS)
        yield controller
    finally:
        controller.down()


def replicas(told: dict[str, Any]) -> dict[str, int]:
    return {vfm: len(on) for vfm, on in told["vfms"].items()}


def test_nodes_come_with_the_load_and_go_with_it(tmp_path: Path) -> None:
    cluster = Machines(nodes=0, most=3)
    cluster.loads = {"hot": Load(1.0)}
    with running(tmp_path, cluster) as controller:
        status = controller.status
        wait_for(lambda: replicas(status()) == {"hot": 1, "still": 1}, "a node has come for the least there is")
        assert len(cluster.there) == 1
        cluster.loads = {"hot": Load(40.0)}
        wait_for(lambda: replicas(status()) == {"hot": 3, "still": 1}, "nodes have come for the load")
        assert len(cluster.there) == 3
        wait_for(lambda: status()["settled"], "all is as it is to be")
        cluster.loads = {"hot": Load(1.0)}
        wait_for(lambda: replicas(status()) == {"hot": 1, "still": 1}, "fewer will do")
        wait_for(lambda: len(cluster.there) == 1, "nodes that hold nothing go")
        assert replicas(status()) == {"hot": 1, "still": 1}


def test_where_no_node_comes_the_status_says_what_there_is_no_room_for(tmp_path: Path) -> None:
    cluster = Machines(nodes=1, most=2)
    cluster.loads = {"hot": Load(40.0)}
    with running(tmp_path, cluster) as controller:
        status = controller.status
        wait_for(lambda: replicas(status()) == {"hot": 2, "still": 1}, "those that fit are there")
        told = status()
        assert told["awaited"] == {"cpu": 1}
        assert told["problems"]["hot"] == "what comes in asks for 3 replicas; there is room for 2"
        assert told["missing"] == []


def test_what_sleeps_needs_no_node_and_wakes_when_it_is_waited_for(tmp_path: Path) -> None:
    cluster = Machines(nodes=1, most=3)
    with running(tmp_path, cluster) as controller:
        status = controller.status
        wait_for(lambda: status()["asleep"] == ["tiny"], "nobody calls it")
        wait_for(lambda: cluster.there == [], "no node is left")
        told = status()
        assert replicas(told) == {"hot": 0, "still": 0}
        assert told["sleeping"] == ["hot", "still"]
        assert cluster.led.on == {"hot": (), "still": ()}, "the door knows them and lets requests wait"
        cluster.waiting = ("still",)
        wait_for(lambda: replicas(status()) == {"hot": 1, "still": 1}, "it is served again")


def test_a_fleet_that_is_not_to_scale_any_more_asks_for_nothing(tmp_path: Path) -> None:
    cluster = Machines(nodes=1, most=2)
    cluster.loads = {"hot": Load(40.0)}
    with running(tmp_path, cluster) as controller:
        wait_for(lambda: controller.status()["awaited"] == {"cpu": 1}, "there is room for less than comes in")
        edited = FLEET.replace("autoscale: true", "autoscale: false").replace("STORE", str(tmp_path))
        controller.apply(parse_fleet(edited, "here"), CONTENTS)
        wait_for(lambda: controller.status()["awaited"] == {}, "nobody is waited for")
        assert cluster.needed == {}
