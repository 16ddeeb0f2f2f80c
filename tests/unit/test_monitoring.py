"""What Prometheus and Grafana are given: that it asks for what there is, once, and that targets are written rightly."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from support.live import wait_for
from support.machines import Machines
from support.served import run

from fmplex_backend.errors import InvalidInput
from fmplex_backend.host.counts import EXPIRIES, FM_SERIES, REJECTIONS, ROW_OUTCOMES, VFM_SERIES
from fmplex_tools.fleet.claims import Claims
from fmplex_tools.fleet.content import Contents, FMContent, VfmContent
from fmplex_tools.fleet.controller import Controller
from fmplex_tools.monitoring.dashboards import DASHBOARDS
from fmplex_tools.monitoring.grafana import as_json
from fmplex_tools.monitoring.targets import TARGETS, Target, write_targets
from fmplex_tools.monitoring.writing import CONFIG, PAGES, PROVISIONING, RUNBOOK, Wanted, prometheus_config, write
from fmplex_tools.planner.fleet_file import parse_fleet

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "tools/fmplex_tools/monitoring"
EXPORTED = {series.name for series in (*FM_SERIES, *VFM_SERIES)}
ENVOY = {
    "envoy_http_downstream_rq_xx",
    "envoy_http_downstream_rq_time_bucket",
    "envoy_vhost_route_upstream_rq_completed",
    "envoy_vhost_route_upstream_rq_retry",
    "envoy_vhost_route_upstream_rq_time_bucket",
    "envoy_cluster_membership_healthy",
    "envoy_cluster_membership_total",
}
"""`tests/live_apart/test_monitoring_served.py` sees that a real Envoy tells them."""
PROMETHEUS = {"up", "ALERTS"}
VALUES = {"outcome": set(ROW_OUTCOMES), "reason": {*REJECTIONS, *EXPIRIES}, "result": {"met", "missed"}}
"""Label → the values that the host gives it."""
UNSHOWN = {"fmplex_lost_batches_total", "fmplex_submit_seconds", "fmplex_unroutable_requests_total", "fmplex_vfms"}
"""What the host tells and no dashboard shows."""


FLEET = """
devices: {cpu: {count: 2, memory: 3 GB}}
fms: {tiny: {memory: 300 MB, cost: {cpu: {alpha: 0.005, beta: 0.0001}}}}
vfms: {one: {fm: tiny, rate: 1, p99_ms: 900}, two: {fm: tiny, rate: 1, p99_ms: 900}}
spread: true
run: {name: f, repository: models, store: STORE}
"""


def rules_of(name: str) -> list[dict[str, Any]]:
    parsed = yaml.safe_load((FOLDER / name).read_text("utf-8"))
    return [rule for group in parsed["groups"] for rule in group["rules"]]


RULES, ALERTS = rules_of("rules.yml"), rules_of("alerts.yml")
RECORDED = {rule["record"] for rule in RULES}
SHOWN = [
    query.expr
    for dashboard in DASHBOARDS
    for row in dashboard.rows.values()
    for panel in row
    for query in panel.queries
]
CHOSEN = [f"count({variable.of})" for dashboard in DASHBOARDS for variable in dashboard.variables]
EXPRESSIONS = [rule["expr"] for rule in (*RULES, *ALERTS)] + SHOWN + CHOSEN


def selectors(expression: str) -> list[Any]:
    """Every vector selector of it; fails where it is no PromQL."""
    found: list[Any] = []

    def note(node: Any) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)

    promql_parser.walk(promql_parser.parse(expression), note)
    return found


def families(names: Iterable[str]) -> set[str]:
    """A histogram, or a sum with its count, by its one name."""
    return {re.sub(r"_(sum|count|bucket|max)$", "", name) for name in names}


def names(expressions: list[str]) -> Counter[str]:
    return Counter(selector.name for each in expressions for selector in selectors(each))


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_what_is_asked_for_is_told(expression: str) -> None:
    asked = selectors(expression)
    assert asked
    for selector in asked:
        assert selector.name in EXPORTED | ENVOY | PROMETHEUS | RECORDED
        for matcher in selector.matchers.matchers:
            known = VALUES.get(matcher.name)
            if known is not None:
                assert all(value in known for value in matcher.value.split("|")), f"{matcher}: there is {known}"


def test_a_rule_reads_what_was_recorded_before_it() -> None:
    """Rules of a group run in their order; what comes later would be one round old."""
    before: set[str] = set()
    for rule in RULES:
        assert set(names([rule["expr"]])) & RECORDED <= before, rule["record"]
        before.add(rule["record"])
    assert len(before) == len(RULES), "each is recorded once"


def test_nothing_is_recorded_that_nobody_reads_or_left_out() -> None:
    read = names(EXPRESSIONS)
    assert read.keys() >= RECORDED
    assert read.keys() >= ENVOY
    assert families(EXPORTED) - families(read) == UNSHOWN


def test_dashboards_show_recorded_series_and_repeat_none() -> None:
    assert set(names(SHOWN)) - RECORDED == {"ALERTS", "fmplex_quarantined"}
    assert [each for each, times in Counter(SHOWN).items() if times > 1] == []


def test_variables_are_those_that_there_are() -> None:
    for dashboard in DASHBOARDS:
        declared = {variable.label for variable in dashboard.variables}
        text = json.dumps(as_json(dashboard, "fmplex"))
        assert set(re.findall(r"\$(\w+)", text)) == declared | {"__all"}
        assert set(re.findall(r"\$\{(\w+)\}", text)) == {"datasource"}


def test_panels_lie_beside_one_another() -> None:
    for dashboard in DASHBOARDS:
        cells: set[tuple[int, int]] = set()
        for panel in as_json(dashboard, "fmplex")["panels"]:
            place = panel["gridPos"]
            own = {(x, y) for x in range(place["x"], place["x"] + place["w"])
                   for y in range(place["y"], place["y"] + place["h"])}  # fmt: skip
            assert not own & cells, panel["title"]
            assert all(x < 24 for x, _ in own)
            cells |= own


def test_grafana_knows_every_field() -> None:
    """Its own model reads each dashboard and gives all of it back."""
    pytest.importorskip("grafana_foundation_sdk", reason="needs Python 3.11")
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins
    from grafana_foundation_sdk.models.dashboard import Dashboard

    register_default_plugins()
    for dashboard in DASHBOARDS:
        made = as_json(dashboard, "fmplex")
        assert list(lost(made, json.loads(JSONEncoder().encode(Dashboard.from_json(made))))) == []
    misspelt = as_json(DASHBOARDS[0], "fmplex") | {"schemaVerson": 41}
    assert list(lost(misspelt, json.loads(JSONEncoder().encode(Dashboard.from_json(misspelt))))) == ["/schemaVerson"]


def lost(made: Any, back: Any, path: str = "") -> Iterator[str]:
    """Where ``back`` differs from ``made``; what is only in ``back`` are defaults."""
    if isinstance(made, dict) and isinstance(back, dict):
        for key, value in made.items():
            yield from lost(value, back[key], f"{path}/{key}") if key in back else (f"{path}/{key}",)
    elif isinstance(made, list) and isinstance(back, list) and len(made) == len(back):
        for number, (one, other) in enumerate(zip(made, back, strict=True)):
            yield from lost(one, other, f"{path}/{number}")
    elif made != back:
        yield path


# ---- alerts ----


def test_every_alert_says_what_and_where_to_read_on() -> None:
    for alert in ALERTS:
        assert alert["alert"].startswith("FMplex")
        assert alert["labels"]["severity"] in ("critical", "warning", "info")
        assert alert["annotations"].keys() == {"summary", "runbook_url"}


def test_every_alert_is_in_the_runbook() -> None:
    file, _, anchor = RUNBOOK.partition("#")
    runbook = (ROOT / file).read_text("utf-8")
    [section] = re.findall(rf"(?ms)^### {anchor.capitalize()}$(.+?)(?=^##|\Z)", runbook)
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == [alert["alert"] for alert in ALERTS]


def test_every_alert_is_tried() -> None:
    tested = yaml.safe_load((ROOT / "tests/data/alerts_test.yml").read_text("utf-8"))["tests"]
    fires = {each["alertname"] for test in tested for each in test.get("alert_rule_test", ()) if each["exp_alerts"]}
    silent = {
        each["alertname"] for test in tested for each in test.get("alert_rule_test", ()) if not each["exp_alerts"]
    }
    assert fires == silent == {alert["alert"] for alert in ALERTS}


# ---- targets ----


def test_targets_of_a_fleet(tmp_path: Path) -> None:
    servers = [Target("cpu-1", "two", "10.0.0.2:8002"), Target("cpu-0", "one", "10.0.0.1:8002")]
    write_targets(tmp_path, "f", servers, "127.0.0.1:8081")
    assert json.loads((tmp_path / TARGETS).read_text()) == [
        {"targets": ["10.0.0.1:8002"], "labels": {"fleet": "f", "node": "one", "device": "cpu-0"}},
        {"targets": ["10.0.0.2:8002"], "labels": {"fleet": "f", "node": "two", "device": "cpu-1"}},
        {"targets": ["127.0.0.1:8081"], "labels": {"fleet": "f"}},
    ]
    written = (tmp_path / TARGETS).stat()
    write_targets(tmp_path, "f", reversed(servers), "127.0.0.1:8081")
    assert (tmp_path / TARGETS).stat().st_ino == written.st_ino, "the same is not written again"
    write_targets(tmp_path, "f", servers[1:], "127.0.0.1:8081")
    assert (tmp_path / TARGETS).stat().st_ino != written.st_ino, "another file takes its place"
    write_targets(tmp_path, "f", (), None)
    assert json.loads((tmp_path / TARGETS).read_text()) == []
    assert [path.name for path in tmp_path.iterdir()] == [TARGETS]


def wait_scraped(cluster: Machines, *expected: tuple[str, str, str]) -> None:
    wait_for(
        lambda: tuple((each.device, each.node, each.address) for each in cluster.led.targets) == expected,
        f"these are scraped: {expected}",
    )


def test_the_door_is_told_whom_to_scrape(tmp_path: Path) -> None:
    """By the real controller: servers that should run, whether they do or not, and none that was drained."""
    fleet = parse_fleet(FLEET.replace("STORE", str(tmp_path)), "here")
    vfm = VfmContent(fm="tiny", config="", versions={"1": "0"})
    cluster = Machines()
    controller = Controller(cluster, Claims(str(tmp_path), "f"), fleet, 60.0)
    first, second = ("cpu-0", "node-1", "10.0.0.1:8002"), ("cpu-1", "node-2", "10.0.0.2:8002")
    try:
        controller.apply(fleet, Contents(fms={"tiny": FMContent(config="")}, vfms={"one": vfm, "two": vfm}))
        wait_scraped(cluster, first, second)
        assert cluster.led.fleet == "f"
        cluster.up = False
        wait_for(lambda: not cluster.led.servers, "the door leads nowhere")
        assert len(cluster.led.targets) == 2, "servers that do not answer are still to be missed"
        cluster.up = True
        lost = cluster.there.pop()
        wait_for(lambda: controller.status()["devices"]["cpu-1"]["node"] is None, "a node is lost")
        wait_scraped(cluster, first, second)
        cluster.there.append(lost)
        wait_for(lambda: controller.status()["devices"]["cpu-1"]["node"], "it is back")
        controller.drain("cpu-1")
        wait_scraped(cluster, first)
    finally:
        controller.down()


# ---- the folder ----


def test_config_of_servers_and_fleets() -> None:
    servers, door = prometheus_config(Wanted(("h:1", "[::1]:2"), ("f",)))["scrape_configs"]
    assert [each["labels"] for each in servers["static_configs"]] == [
        {"fleet": "single", "node": "h", "device": "h:1"},
        {"fleet": "single", "node": "::1", "device": "[::1]:2"},
    ]
    assert servers["file_sd_configs"] == door["file_sd_configs"]
    assert servers["file_sd_configs"][0]["files"][0].endswith("/fleets/f/door/targets.json")
    assert (servers["job_name"], door["job_name"]) == ("fmplex", "fmplex-door")
    assert [each["relabel_configs"][0]["action"] for each in (servers, door)] == ["keep", "drop"]


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ({}, "nothing to watch"),
        ({"metrics": ("localhost",)}, "'localhost': give HOST:PORT"),
        ({"metrics": ("http://localhost:8002/metrics",)}, "give HOST:PORT"),
        ({"metrics": ("localhost:80020",)}, "'localhost:80020': give HOST:PORT"),
        ({"metrics": (":8002",)}, "give HOST:PORT"),
        ({"fleets": ("fleet.yaml/x",)}, "'fleet.yaml/x': give its name, 'run.name'"),
        ({"metrics": ("h:1",), "alertmanagers": ("h",)}, "'h': give HOST:PORT"),
        ({"metrics": ("h:1",), "prometheus": "127.0.0.1:9090"}, "'127.0.0.1:9090': give a URL"),
    ],
)
def test_what_cannot_be_watched(wanted: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(told)):
        Wanted(**wanted)


def test_the_command_writes_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    ran = run("monitoring", "write", str(folder), "--runbook", "https://runbook.test/#a: b")
    assert ran.returncode == 0, ran.stderr
    assert f"--config.file={folder / CONFIG}" in ran.stdout
    config = yaml.safe_load((folder / CONFIG).read_text())
    assert config["scrape_configs"][0]["static_configs"][0]["targets"] == ["127.0.0.1:8002"]
    assert {path.name for path in (folder / CONFIG).parent.iterdir()} == {"prometheus.yml", *config["rule_files"]}
    alerts = yaml.safe_load((folder / CONFIG).with_name("alerts.yml").read_text())
    assert alerts["groups"][0]["rules"][0]["annotations"]["runbook_url"] == "https://runbook.test/#a: b"
    [provider] = yaml.safe_load((folder / PROVISIONING / "dashboards/fmplex.yml").read_text())["providers"]
    assert {path.stem for path in Path(provider["options"]["path"]).iterdir()} == {each.uid for each in DASHBOARDS}
    assert Path(provider["options"]["path"]) == folder / PAGES

    (tmp_path / "file").write_text("")
    ran = run("monitoring", "write", str(tmp_path / "file"))
    assert ran.returncode == 1
    assert "name a folder of your own" in ran.stderr


def test_it_is_written_anew(tmp_path: Path) -> None:
    first = write(tmp_path, Wanted(("h:1",)))
    assert write(tmp_path, Wanted(("h:2",))) == first
    assert "h:1" not in (tmp_path / CONFIG).read_text()
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(first)
