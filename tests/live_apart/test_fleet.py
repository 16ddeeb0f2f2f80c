"""A fleet as its users run it: Ray nodes, a tritonserver on each, one door; under load, while all dies by turns."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.fleets import TEXTS, Fleet, Load, values
from support.live import wait_for
from support.recipes import RECIPES, write_vfm
from support.served import serving

from fmplex_client import Client, UnknownTask
from fmplex_tools.fleet.artifacts import push
from fmplex_tools.fleet.folders import fleet_folder
from fmplex_tools.fleet.local import LocalNodes
from fmplex_tools.planner.fleet_file import read_fleet
from fmplex_tools.tasks.manage import create_bundle

pytest.importorskip("ray", reason="needs the extra 'fleet'")
pytestmark = pytest.mark.live

NAME = "tested"
VFMS = {"one": "lora_qv_4", "two": "lora_all_16", "three": "bare_two", "four": "dora_qv_8", "five": "lora_qv_4"}
FLEET = """
devices: {cpu: {count: 3, memory: 3 GB}}
fms: {tiny: {memory: 300 MB, cost: {cpu: {alpha: 0.005, beta: 0.0001}}}}
vfms:
VFMS
bundles: {both: [one, two]}
spread: true
run: {name: NAME, repository: REPOSITORY, store: STORE, lost_after: 8, door: {port: PORT, admin: ADMIN}}
"""


@pytest.fixture
def fleet(tmp_path: Path, small_repository: Path, tiny_backbone: Path) -> Iterator[Fleet]:
    for port, (name, recipe) in enumerate(VFMS.items(), start=10):
        write_vfm(small_repository, name, port, RECIPES[recipe], tiny_backbone, fm="tiny", seed=port)
    create_bundle(small_repository, "both", ["one", "two"])
    made = Fleet(NAME, FLEET, tmp_path, small_repository)
    made.forget()
    made.write({"one": ", replicas: 2", "two": ", replicas: 2", "three": "", "four": ""})
    yield made
    made.forget()


def answers_of_one_machine(repository: Path) -> dict[str, Any]:
    with serving(repository) as served:
        served.wait_ready()
        with Client(served.http) as client:
            return {vfm: values(client, vfm) for vfm in (*VFMS, "both")}


def kill(processes: dict[int, psutil.Process]) -> None:
    assert processes, "there is one to kill"
    for process in processes.values():
        process.kill()


def test_a_fleet_serves_whatever_dies(fleet: Fleet) -> None:
    expected = answers_of_one_machine(fleet.repository)
    with LocalNodes(read_fleet(fleet.file), 3) as nodes:
        fleet.address = nodes.address
        try:
            scenes(fleet, nodes, expected)
        finally:
            fleet.call("down", "--fleet", NAME)
        left = [p for p in psutil.process_iter(["cmdline"]) if str(fleet_folder(NAME)) in str(p.info)]
        assert not left, "no process is left"


def scenes(fleet: Fleet, nodes: LocalNodes, expected: dict[str, Any]) -> None:
    told = fleet.call("up", str(fleet.file), "--wait", "100")
    assert "open, leads to 5 vFMs" in told
    load = Load(fleet.door, {vfm: expected[vfm] for vfm in ("one", "two", "three", "four", "both")})
    led = fleet.status()["vfms"]
    assert led["both"] == led["one"] == led["two"]
    for protocol in ("http", "grpc"):
        with Client(fleet.door, protocol, timeout=5) as client, pytest.raises(UnknownTask, match="no such vFM"):
            client.predict("five", TEXTS)
    with load.going_on():
        after(load, fleet, "the controller was killed", lambda: kill(nodes.workers("_ControllerActor")))
        after(load, fleet, "the door's keeper was killed", lambda: kill(nodes.workers("_DoorActor")))
        after(load, fleet, "an agent was killed", lambda: kill(dict([nodes.workers("_AgentActor").popitem()])))
        envoy = next(p for p in psutil.process_iter(["name"]) if f"{NAME}/door" in " ".join(p.cmdline()))
        after(load, fleet, "Envoy was killed", envoy.kill)

        device, busy = next((n, d) for n, d in fleet.status()["devices"].items() if "three" in d["planned"])
        server = psutil.Process(busy["report"]["pid"])
        after(load, fleet, "a server was killed", server.kill)

        status = fleet.wait_settled("nothing has changed")
        fleet.call("drain", device, "--fleet", NAME, "--wait", "100")
        drained = fleet.status()["devices"]
        assert not drained[device]["planned"]
        assert drained[device]["report"]["held"] == []
        fleet.call("drain", device, "--undo", "--fleet", NAME, "--wait", "100")
        assert status["vfms"]["three"] != fleet.status()["vfms"]["three"], "it stays where it went"

        new_versions(fleet, load, expected)
        assert not load.wrong
        lost_node(fleet, nodes)
    assert not load.wrong
    assert load.answered > 100


def after(load: Load, fleet: Fleet, what: str, happens: Callable[[], None]) -> None:
    happens()
    fleet.wait_settled(what)
    before = load.answered
    wait_for(lambda: load.answered > before + 20, f"requests are answered after {what}")
    assert not load.wrong, what


def new_versions(fleet: Fleet, load: Load, expected: dict[str, Any]) -> None:
    """A vFM comes and one goes; a version that is not what it should be is not used."""
    fleet.write({"one": ", replicas: 2", "two": "", "three": "", "five": ", replicas: 2"})
    load.vfms.remove("four")
    time.sleep(1.0)
    load.expect("five", expected["five"])
    fleet.call("apply", str(fleet.file), "--wait", "100")
    load.vfms.append("five")
    with Client(fleet.door, timeout=5) as client, pytest.raises(UnknownTask, match="no such vFM"):
        client.predict("four", TEXTS)

    # Somebody has changed what the store holds of a version.
    shutil.copytree(fleet.repository / "three" / "1", fleet.repository / "three" / "2")
    (fleet.repository / "three" / "2" / "notes.json").write_text('"another"')
    digest = push(fleet.repository / "three" / "2", str(fleet.store))
    next((fleet.store / digest).rglob("vfm.json")).write_text("{}")
    told = fleet.call("apply", str(fleet.file), "--wait", "8", good=False)
    assert "is not what its manifest says; not used" in told
    assert "three" in fleet.status()["outdated"]
    shutil.rmtree(fleet.repository / "three" / "2")
    fleet.call("apply", str(fleet.file), "--wait", "100")


def lost_node(fleet: Fleet, nodes: LocalNodes) -> None:
    """A machine goes with all that runs on it; what was on it is served elsewhere."""
    told = fleet.wait_settled("before a node is lost")
    victim = next(name for name, device in told["devices"].items() if device["planned"])
    number = int(victim.partition("-")[2]) + 1
    pid = told["devices"][victim]["report"]["pid"]
    serve = psutil.Process(pid)
    gone = [serve, *serve.children(recursive=True)]
    nodes.kill(number)
    for process in gone:
        process.kill()
    wait_for(lambda: not fleet.status()["devices"][victim]["planned"], "it is planned without")
    moved = fleet.wait_settled("its vFMs are elsewhere")
    assert all(led and victim not in led for led in moved["vfms"].values())
    assert not moved["missing"]
