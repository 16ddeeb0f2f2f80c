"""The files that Envoy watches: which servers each vFM is led to, and that nothing is replaced for nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fmplex_tools.door.xds import (
    BOOTSTRAP,
    CLUSTERS,
    LISTENERS,
    ROUTES,
    Door,
    Server,
    write_bootstrap,
    write_clusters,
    write_routes,
)

DOOR = Door("127.0.0.1", 9000, 9001)
SERVERS = [Server(name, "127.0.0.1", 8000 + n, 8100 + n, 8200 + n) for n, name in enumerate("abc")]


def write(folder: Path, on: dict[str, list[str]]) -> None:
    write_clusters(folder, DOOR, SERVERS, on)
    write_routes(folder, DOOR, SERVERS, on, dict.fromkeys(on, "3"))


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


def led_to(folder: Path) -> dict[str, dict[str, list[int]]]:
    """vFM → protocol → ports of the servers that it is led to."""
    [routes] = read(folder, ROUTES)["resources"]
    table = routes["virtual_hosts"][0]["matcher"]["matcher_tree"]["exact_match_map"]["map"]
    ports = {
        cluster["name"]: [
            one["endpoint"]["address"]["socket_address"]["port_value"]
            for one in cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
        ]
        for cluster in read(folder, CLUSTERS)["resources"]
    }
    found: dict[str, dict[str, list[int]]] = {}
    for vfm, action in table.items():
        *listed, grpc, http = action["action"]["typed_config"]["routes"]
        assert bool(listed) == (vfm == "-")
        assert "grpc" in grpc["match"]
        if "direct_response" in http:
            found[vfm] = {"status": [http["direct_response"]["status"]]}
            continue
        assert grpc["stat_prefix"] == http["stat_prefix"] == vfm
        found[vfm] = {"grpc": ports[grpc["route"]["cluster"]], "http": ports[http["route"]["cluster"]]}
    return found


def test_each_vfm_is_led_to_its_servers(tmp_path: Path) -> None:
    write(tmp_path, {"one": ["a"], "two": ["c", "a"], "too": ["a", "c"], "gone": ["x"]})
    found = led_to(tmp_path)
    assert found["one"] == {"grpc": [8100], "http": [8000]}
    assert found["two"] == found["too"] == {"grpc": [8100, 8102], "http": [8000, 8002]}
    assert found["gone"] == {"status": [503]}, "its server is not there"
    assert found["-"]["http"] == [8000, 8001, 8002], "what is for no vFM goes to any"
    [routes] = read(tmp_path, ROUTES)["resources"]
    table = routes["virtual_hosts"][0]["matcher"]["matcher_tree"]["exact_match_map"]["map"]
    listed = json.loads(table["-"]["action"]["typed_config"]["routes"][0]["direct_response"]["body"]["inline_string"])
    assert {"name": "one", "version": "3", "state": "READY"} in listed, "no server knows all that there is"
    names = [cluster["name"] for cluster in read(tmp_path, CLUSTERS)["resources"]]
    assert len(names) == len(set(names)) == 6, "vFMs on the same servers share their clusters"


def test_clusters_go_a_step_after_their_routes(tmp_path: Path) -> None:
    def names() -> set[str]:
        return {cluster["name"] for cluster in read(tmp_path, CLUSTERS)["resources"]}

    write(tmp_path, {"one": ["a"]})
    write(tmp_path, {"one": ["b"]})
    assert {"http/a", "http/b", "http/all"} <= names(), "requests may still be under way to it"
    write(tmp_path, {"one": ["b"]})
    assert "http/a" not in names()


def test_what_is_the_same_is_not_replaced(tmp_path: Path) -> None:
    for _ in range(3):
        write(tmp_path, {"one": ["a"], "two": ["b"]})
        write_bootstrap(tmp_path, DOOR)
        now = {path.name: path.stat().st_ino for path in tmp_path.iterdir()}
    write(tmp_path, {"two": ["b"], "one": ["a"]})
    write_bootstrap(tmp_path, DOOR)
    assert {path.name: path.stat().st_ino for path in tmp_path.iterdir()} == now
    assert set(now) == {BOOTSTRAP, LISTENERS, CLUSTERS, ROUTES}


def test_tls(tmp_path: Path) -> None:
    door = Door("0.0.0.0", 443, 9001, certificate=Path("/etc/door.pem"), key=Path("/etc/door.key"))
    write_bootstrap(tmp_path, door)
    [listener] = read(tmp_path, LISTENERS)["resources"]
    tls = listener["filter_chains"][0]["transport_socket"]["typed_config"]["common_tls_context"]
    assert tls["tls_certificates"][0]["private_key"] == {"filename": "/etc/door.key"}
    assert tls["alpn_protocols"] == ["h2", "http/1.1"]


def test_a_server_in_many_sets_is_asked_for_its_health_less_often_for_each(tmp_path: Path) -> None:
    servers = [Server(f"s{n}", "127.0.0.1", 8000, 8100, 8200) for n in range(60)]

    def seconds(vfms: int) -> float:
        folder = tmp_path / str(vfms)
        folder.mkdir()
        write_clusters(folder, DOOR, servers, {f"v{n}": ["s0", f"s{n + 1}"] for n in range(vfms)})
        intervals = {one["health_checks"][0]["interval"] for one in read(folder, CLUSTERS)["resources"]}
        (found,) = intervals
        return float(found.removesuffix("s"))

    assert [seconds(count) for count in (1, 7, 8, 15, 16, 50)] == [1, 1, 2, 2, 4, 8]
