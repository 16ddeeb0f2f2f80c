"""Debian's own Prometheus over a real server and a real door: its configuration, every query, alerts that fire."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import tritonclient.grpc as grpc
import tritonclient.http as http
from support.live import TEXTS, ask, wait_for
from support.recipes import RECIPES, write_vfm
from support.served import Served, make_small_repository, run, serving
from tritonclient.utils import InferenceServerException

from fmplex_tools.door.keeper import DoorKeeper, Lead
from fmplex_tools.door.xds import Door, Server
from fmplex_tools.monitoring.dashboards import DASHBOARDS
from fmplex_tools.monitoring.targets import Target, targets_file
from fmplex_tools.monitoring.writing import CONFIG
from fmplex_tools.server.process import answers, free_ports
from fmplex_tools.serving import fetch_status

PROMETHEUS, PROMTOOL = shutil.which("prometheus"), shutil.which("promtool")
pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(not (PROMETHEUS and PROMTOOL), reason="needs prometheus: apt-get install prometheus"),
]
ROOT = Path(__file__).parents[2]
FLEET = "watched"
VFMS = {
    "good": {"latency_slo_ms": "60000"},
    "limited": {"rate_limit_rows_per_second": "2"},
    "late": {"timeout_ms": "1"},
}
MAY_BE_EMPTY = {"Quarantined"}
"""Titles of panels whose series begins with an event that does not happen here."""


class Prometheus:
    """One that runs, asked by its HTTP API."""

    def __init__(self, config: Path, storage: Path) -> None:
        [port] = free_ports(1)
        at = f"http://127.0.0.1:{port}"
        self._url = f"{at}/api/v1"
        assert PROMETHEUS is not None
        self.process = subprocess.Popen(
            [
                *(PROMETHEUS, f"--config.file={config}", f"--storage.tsdb.path={storage}"),
                *(f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"),
            ]
        )
        wait_for(lambda: answers(f"{at}/-/ready") or self.process.poll() is not None, "Prometheus is ready")
        assert self.process.poll() is None, "Prometheus does not start"

    def get(self, what: str, **parameters: str) -> Any:
        """``data`` of the answer; an error of Prometheus' fails the test with its reason."""
        url = f"{self._url}/{what}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                told = json.load(answer)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from None
        assert told["status"] == "success", told
        return told["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Series of an instant query: ``metric`` and ``value`` each."""
        found: list[dict[str, Any]] = self.get("query", query=expression)["result"]
        return found

    def wait(self, expression: str) -> list[dict[str, Any]]:
        """Until it has data."""
        return wait_for(lambda: self.query(expression), f"data of {expression}")


class Watched:
    """A server behind a door, both under load and scraped."""

    def __init__(self, served: Served, keeper: DoorKeeper, door: Door, prometheus: Prometheus) -> None:
        self.served, self.keeper, self.door, self.prometheus = served, keeper, door, prometheus
        self.lead(1, self.target("node-1"))
        wait_for(lambda: keeper.report().led == 1 and self._open(), "the door is open")

    def _open(self) -> bool:
        return answers(f"http://127.0.0.1:{self.door.port}/v2/models/good/ready")

    def target(self, node: str) -> Target:
        return Target("cpu-0", node, f"127.0.0.1:{self.served.ports[2]}")

    def lead(self, number: int, *targets: Target) -> None:
        """Where the door leads, and who is to be scraped."""
        server = Server("cpu-0", "127.0.0.1", self.served.ports[0], self.served.ports[1], 0)
        self.keeper.lead(Lead(number, (server,), {vfm: ["cpu-0"] for vfm in VFMS}, {}, FLEET, targets))

    @contextmanager
    def load(self) -> Iterator[None]:
        """Every vFM asked over both protocols; only those that are held short may refuse."""
        stop, wrong = threading.Event(), list[str]()
        address = f"127.0.0.1:{self.door.port}"

        def go(client: Any) -> None:
            with client:
                while not stop.is_set():
                    for vfm in VFMS:
                        try:
                            ask(client, vfm, TEXTS[:2])
                        except InferenceServerException as error:
                            wrong.extend([str(error)] if vfm == "good" else [])

        threads = [
            threading.Thread(target=lambda: go(grpc.InferenceServerClient(address))),
            threading.Thread(target=lambda: go(http.InferenceServerClient(address))),
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert not wrong


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("watched")
    repository = make_small_repository(folder, tiny_backbone)
    shutil.rmtree(repository / "good")
    for port, (name, policy) in enumerate(VFMS.items(), start=10):
        write_vfm(repository, name, port, RECIPES["lora_qv_4"], tiny_backbone, fm="tiny", parameters=policy)
    own = targets_file(FLEET).parent
    shutil.rmtree(own, ignore_errors=True)
    door = Door("127.0.0.1", *free_ports(2))
    with serving(repository) as served:
        served.wait_ready()
        metrics = f"127.0.0.1:{served.ports[2]}"
        made = run("monitoring", "write", str(folder / "made"), "--metrics", metrics, "--fleet", FLEET, "--interval=1")
        assert made.returncode == 0, made.stderr
        assert "has not run here yet" in made.stdout
        keeper = DoorKeeper(door, own, 1.0)
        prometheus = Prometheus(folder / "made" / CONFIG, folder / "storage")
        try:
            yield Watched(served, keeper, door, prometheus)
        finally:
            prometheus.process.terminate()
            assert prometheus.process.wait(30) == 0
            if json.loads(targets_file(FLEET).read_text()):  # else the last test has closed it
                keeper.close(down=True)
            shutil.rmtree(own.parent, ignore_errors=True)


def test_promtool_accepts_all_and_the_alerts_do_what_they_should(tmp_path: Path) -> None:
    """``promtool test rules`` over `tests/data/alerts_test.yml`: each alert, silent and firing."""
    made = run("monitoring", "write", str(tmp_path), "--metrics", "127.0.0.1:8002", "--fleet", FLEET)
    assert made.returncode == 0, made.stderr
    config = tmp_path / CONFIG
    shutil.copy(ROOT / "tests/data/alerts_test.yml", config.parent)
    for command in (("check", "config", config.name), ("test", "rules", "alerts_test.yml")):
        ran = subprocess.run([str(PROMTOOL), *command], cwd=config.parent, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        assert "SUCCESS" in ran.stdout
    broken = config.with_name("rules.yml").read_text().replace("histogram_quantile(0.99", "histogram_quantile(0.9")
    config.with_name("rules.yml").write_text(broken.replace('outcome!="invalid"', 'outcome!="wrong"'))
    ran = subprocess.run([str(PROMTOOL), "test", "rules", "alerts_test.yml"], cwd=config.parent, check=False)
    assert ran.returncode != 0, "it sees a rule that is wrong"


def test_every_query_is_answered_with_data(watched: Watched) -> None:
    with watched.load():
        for dashboard in DASHBOARDS:
            for row in dashboard.rows.values():
                for panel in row:
                    for query in panel.queries:
                        shown = query.expr
                        for variable in dashboard.variables:
                            shown = shown.replace(f"${variable.label}", ".*")
                        if panel.title in MAY_BE_EMPTY:
                            watched.prometheus.query(shown)
                        else:
                            watched.prometheus.wait(shown)
            for variable in dashboard.variables:
                assert watched.prometheus.wait(variable.of.replace("$fleet", ".*").replace("$fm", ".*"))
        rules = watched.prometheus.get("rules")["groups"]
    assert sum(len(group["rules"]) for group in rules) > 50
    for group in rules:
        for rule in group["rules"]:
            assert rule["health"] == "ok", rule


def test_figures_are_those_of_the_load(watched: Watched) -> None:
    query, wait = watched.prometheus.query, watched.prometheus.wait
    with watched.load():
        # The server is scraped twice, as a single one and as one of a fleet: two fleets, apart.
        labels = [series["metric"] for series in wait('up{job="fmplex"} == 1')]
        metrics = f"127.0.0.1:{watched.served.ports[2]}"
        assert {(each["fleet"], each["node"], each["device"], each["instance"]) for each in labels} == {
            ("single", "127.0.0.1", metrics, metrics),
            (FLEET, "node-1", "cpu-0", metrics),
        }
        assert [each["metric"]["fleet"] for each in query('up{job="fmplex-door"} == 1')] == [FLEET]
        refused = wait(f'vfm:fmplex_rejections:rate1m{{vfm="limited",fleet="{FLEET}"}} > 0')
        assert [each["metric"]["reason"] for each in refused] == ["rate_limit"]
        wait('vfm:fmplex_errors:ratio1m{vfm="late"} > 0.5')
        wait('vfm:fmplex_errors:ratio1m{vfm="good"} == 0')
        wait('vfm:fmplex_slo_met:ratio5m{vfm="good"} == 1')
        served = f'vfm:fmplex_requests:rate1m{{vfm="good",outcome="served",fleet="{FLEET}"}}'
        wait(f'door:fmplex_vfm_requests:rate1m{{vfm="good"}} / ignoring (fm, outcome) {served} < 1.25 > 0.8')
        assert query('ALERTS{alertname=~"FMplex.+",alertstate="firing"}') == [], "nothing is wrong for long"


def test_an_engine_that_dies_is_told(watched: Watched) -> None:
    [engine, *_] = fetch_status(watched.served.http, "tiny")["engine_pids"]
    with watched.load():
        psutil.Process(engine).send_signal(signal.SIGKILL)
        fired = watched.prometheus.wait('ALERTS{alertname="FMplexEngineDied",alertstate="firing"}')
    assert {each["metric"]["fm"] for each in fired} == {"tiny"}


def test_targets_follow_the_fleet(watched: Watched) -> None:
    def devices() -> list[tuple[str, str]]:
        active = watched.prometheus.get("targets", state="active")["activeTargets"]
        labels = [target["labels"] for target in active if target["labels"]["fleet"] == FLEET]
        return sorted((each["job"], each.get("node", "")) for each in labels)

    door = ("fmplex-door", "")
    assert devices() == [("fmplex", "node-1"), door]
    watched.lead(2, watched.target("node-2"))
    wait_for(lambda: devices() == [("fmplex", "node-2"), door], "it has moved")
    watched.lead(3)
    wait_for(lambda: devices() == [door], "it is drained")
    watched.lead(4, watched.target("node-2"))
    wait_for(lambda: devices() == [("fmplex", "node-2"), door], "it is back")


def test_a_server_that_is_gone_is_missed(watched: Watched) -> None:
    watched.served.process.send_signal(signal.SIGTERM)
    watched.served.finish()
    gone = watched.prometheus.wait('ALERTS{alertname="FMplexServerDown"}')
    assert {each["metric"]["alertstate"] for each in gone} <= {"pending", "firing"}
    watched.prometheus.wait('ALERTS{alertname="FMplexDoorWithoutServers",servers="cpu-0"}')
    watched.keeper.close(down=True)
    wait_for(lambda: not watched.prometheus.query(f'up{{fleet="{FLEET}"}}'), "a fleet that is down is not missed")
    time.sleep(2)
    assert watched.prometheus.query('up{fleet="single"}'), "the server that was named is"
